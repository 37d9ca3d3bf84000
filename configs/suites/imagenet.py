"""ImageNet's 1,000 classes, zero-shot, with the names and the 80 sentences that open_clip ships.

    mmfm eval RUN configs/suites/imagenet.py --root data/imagenet/val

For a folder of other classes: folders.py.
"""

from mmfm.evals.suite import ClassFolders, Classify, Suite
from mmfm.evals.templates import imagenet_names, openai_imagenet


def suite() -> Suite:
    return Suite(
        name="imagenet",
        tasks=(Classify(data=ClassFolders(), classes=imagenet_names(), templates=openai_imagenet()),),
        layout="ROOT/CLASS/*.JPEG with 1,000 folders that sort as the WordNet numbers do (n01440764, ...)",
        source="ImageNet (ILSVRC 2012), its validation pictures sorted into folders",
    )
