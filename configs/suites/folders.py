"""Any pictures in a folder for each class, zero-shot, with the 80 sentences that open_clip ships for ImageNet.

    mmfm eval RUN configs/suites/folders.py --root data/pets

Classes are called as ROOT/classnames.txt says, a name on each line in the order of the folders (or folder, tab, name);
without that file as the folders are, with spaces for underscores.
"""

from mmfm.evals.suite import ClassFolders, Classify, Suite
from mmfm.evals.templates import openai_imagenet


def suite() -> Suite:
    return Suite(
        name="folders",
        tasks=(Classify(data=ClassFolders(), templates=openai_imagenet()),),
        layout="ROOT/CLASS/*.jpg, and ROOT/classnames.txt if the folders' names are no names",
        source="your own",
    )
