"""COCO's 5,000 pictures of val2017 and their captions, found in both directions.

    mmfm eval RUN configs/suites/coco_captions.py --root data/coco

Published figures are of Karpathy's test split: with his file, Coco(annotations="dataset_coco.json", media=".",
split="test").
"""

from mmfm.evals.suite import Coco, Retrieve, Suite


def suite() -> Suite:
    return Suite(
        name="coco_captions",
        tasks=(Retrieve(data=Coco(annotations="annotations/captions_val2017.json", media="val2017")),),
        layout="ROOT/annotations/captions_val2017.json and ROOT/val2017/*.jpg",
        source="COCO 2017 (Lin et al. 2014)",
    )
