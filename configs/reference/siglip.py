"""SigLIP (arXiv 2303.15343) with ViT-B/16 at 256 pixels and a batch of 32,768: each pair a question of its own.

    mmfm plan configs/reference/siglip.py --gpus 64
    torchrun --nproc-per-node 8 -m mmfm train configs/reference/siglip.py

No rank holds the square of scores: it is computed in tiles, with one side gathered. On 8 GPUs: in parts, by
--parallel.micro-batch 512.

On H100s, as `mmfm plan` says (written by tools/reference.py):

     GPUs   batch   GB each  s/step  samples/s  MFU %  largest batch  hours  GPU hours
        8  32,768  510 (no)     2.5     13,000     29          4,500     69        550
       64  32,768        68    0.31    100,000     28         36,000      9        560
    1,000  33,000         9   0.039    840,000     15        530,000      1      1,100

221 M parameters. Assumed: data/datacomp/tokenizer.json is not here: a vocabulary of 32,768 tokens is assumed; samples
are made up, texts of 32 to 64 tokens.
"""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Contrastive, Optim, Run, TextTower, Vit
from mmfm.config.load import read_run


def config() -> Run:
    run = read_run(Path(__file__).with_name("clip.py"))
    return replace(
        run,
        name="siglip",
        model=replace(
            run.model,
            image=Vit(height_px=256, width_px=256, width=768, depth=12, heads=12),
            text=TextTower(width=768, depth=12, heads=12, context=64),
            embed_dim=768,
        ),
        data=replace(run.data, batch_size=32_768, max_text_tokens=64),
        contrastive=(Contrastive(pair=("image", "text"), loss="sigmoid"),),
        optim=Optim(steps=100_000, lr=1e-3, warmup_steps=5_000, weight_decay=1e-4, betas=(0.9, 0.95), precision="bf16"),
    )
