"""ESC-50's fifty kinds of sounds: zero-shot over all 2,000 clips; neighbours and a linear probe over its five folds.

mmfm eval RUN configs/suites/esc50.py --root data/ESC-50
"""

from mmfm.evals.suite import KNN, Classify, LinearProbe, Suite, Table

ESC50 = Table(table="meta/esc50.csv", media="audio", file="filename", labels="category", fold="fold")


def suite() -> Suite:
    return Suite(
        name="esc50",
        tasks=(
            Classify(data=ESC50, templates=("This is a sound of {}.",), modality="audio"),
            KNN(train=ESC50, modality="audio"),
            LinearProbe(train=ESC50, modality="audio"),
        ),
        layout="ROOT/meta/esc50.csv and ROOT/audio/*.wav",
        source="ESC-50: Dataset for Environmental Sound Classification (Piczak 2015)",
    )
