"""Pictures that are named by those before them, by how many there are: made-up names, true ones, and shuffled ones.

mmfm eval RUN configs/suites/shots.py --root data/scenes
"""

from mmfm.evals.suite import Answer, Suite


def suite() -> Suite:
    return Suite(
        name="shots",
        tasks=(Answer(shards="test/shots-*.tar", metrics=("exact",), baselines=()),),
        layout="ROOT/test, as `mmfm data scenes ROOT` writes it",
        source="Tux Paint's stamps, composed",
    )
