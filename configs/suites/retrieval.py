"""Pictures and their captions, several of each, in both directions: the shards of CLIP_benchmark, or your own.

    mmfm eval RUN configs/suites/retrieval.py --root data/flickr30k/test

A picture is found where any of its captions is, and each caption asks for its own picture alone, as CLIP is measured.
"""

from mmfm.evals.suite import Retrieve, Suite, Tars


def suite() -> Suite:
    return Suite(
        name="retrieval",
        tasks=(Retrieve(data=Tars(shards=".")),),
        layout="ROOT/*.tar with NAME.jpg and NAME.txt, a caption on each line (or NAME.json with a list of captions)",
        source="Flickr30k or COCO in WebDataset's layout, or your own pictures",
    )
