"""What a model writes about COCO's pictures, against all five captions: CIDEr, BLEU, ROUGE-L.

mmfm eval RUN configs/suites/captioning.py --root data/coco
"""

from mmfm.evals.suite import Caption, Coco, Suite


def suite() -> Suite:
    return Suite(
        name="captioning",
        tasks=(Caption(data=Coco(annotations="annotations/captions_val2017.json", media="val2017")),),
        layout="ROOT/annotations/captions_val2017.json and ROOT/val2017/*.jpg",
        source="COCO 2017 (Lin et al. 2014)",
    )
