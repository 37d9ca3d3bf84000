"""CLIP ViT-B/16 (arXiv 2103.00020) on image-text shards such as CC12M's or DataComp's, 1.28 billion samples seen.

    mmfm plan configs/reference/clip.py --gpus 8
    mmfm train configs/reference/clip.py --devices 8

The towers are CLIP's; two layers of trunk above them pool what they say. What does not fit on 8 GPUs does in parts, by
--parallel.micro-batch 512.

On H100s, as `mmfm plan` says (written by tools/reference.py):

     GPUs   batch   GB each  s/step  samples/s  MFU %  largest batch  hours  GPU hours
        8  16,384  196 (no)    0.93     18,000     27          5,900     20        160
       64  16,384        28    0.12    140,000     27         47,000      3        160
    1,000  16,000         5   0.028    580,000      7        710,000      1        600

165 M parameters. Assumed: data/datacomp/tokenizer.json is not here: a vocabulary of 32,768 tokens is assumed; samples
are made up, texts of 32 to 64 tokens.
"""

from mmfm.config import Augment, Contrastive, Data, Model, Optim, Run, Source, TextTower, Trunk, Vit

SHARDS = "data/datacomp"
TRUNK = Trunk(width=512, depth=2, heads=8, kv_heads=8)


def model() -> Model:
    return Model(
        image=Vit(width=768, depth=12, heads=12, prefix=1, norm_pre=True),
        audio=None,
        text=TextTower(width=512, depth=12, heads=8, context=77, causal=True),
        trunk=TRUNK,
        tokenizer=f"{SHARDS}/tokenizer.json",
        embed_dim=512,
    )


def data() -> Data:
    return Data(
        train=(Source(shards=f"{SHARDS}/{{000000..012799}}.tar", modalities=("image", "text")),),
        batch_size=16_384,
        num_workers=8,
        max_text_tokens=77,
        augment=Augment(crop=0.1),
    )


def config() -> Run:
    return Run(
        name="clip",
        model=model(),
        data=data(),
        contrastive=(Contrastive(pair=("image", "text")),),
        optim=Optim(steps=78_125, lr=1e-3, warmup_steps=2_000, weight_decay=0.2, precision="bf16"),
        save_every_steps=1_000,
        keep_every_steps=10_000,
    )
