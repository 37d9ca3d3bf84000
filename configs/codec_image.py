"""A codec of pictures of numbers: 32 codes for 16 by 32 pixels, which `text>image` then writes.

    mmfm data numbers data/numbers
    mmfm train configs/codec_image.py

Cost: a minute or two on two CPU cores. How good: experiments/006-any-to-any.
"""

from mmfm.config import Data, ImageCodec, Model, Optim, Reconstruction, Run, Source, Trunk

NUMBERS = "data/numbers"
CODEC = ImageCodec(height_px=16, width_px=32, channels=1, patch_px=4, levels=(8, 6, 5), width=64, depth=1)


def config() -> Run:
    return Run(
        name="codec-image",
        model=Model(
            image=None,
            audio=None,
            text=None,
            trunk=Trunk(width=8, depth=0, heads=1, kv_heads=1),
            embed_dim=8,
            image_codec=CODEC,
        ),
        data=Data(
            train=(Source(shards=f"{NUMBERS}/train/image-*.tar", modalities=("image",)),),
            val=f"{NUMBERS}/val",
            batch_size=64,
            cache_mb=256,
        ),
        reconstruction=(Reconstruction(modality="image"),),
        optim=Optim(steps=1_000, lr=2e-3, warmup_steps=50, weight_decay=0.0),
    )
