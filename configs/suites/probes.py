"""What labels make of the embeddings of pictures: k nearest neighbours, and a linear probe.

    mmfm eval RUN configs/suites/probes.py --root data/pets

What is chosen is chosen on train alone; test is only asked.
"""

from mmfm.evals.suite import KNN, ClassFolders, LinearProbe, Suite

TRAIN, TEST = ClassFolders(path="train"), ClassFolders(path="test")


def suite() -> Suite:
    return Suite(
        name="probes",
        tasks=(KNN(train=TRAIN, test=TEST), LinearProbe(train=TRAIN, test=TEST)),
        layout="ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg with the same classes",
        source="any that has a train and a test set, such as ImageNet, Oxford-IIIT Pet or Food-101",
    )
