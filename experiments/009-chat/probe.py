"""What a linear map reads in the locked tower's features: logistic regression on the 4 x 4 map and its mean, which is
what the projector is given, for each kind of question that has few answers.

    python experiments/009-chat/probe.py bundles/effnet data/scenes runs/probe

It learns from the questions of train and is asked those of test and of another style. results.scenes.json of the last
folder has its accuracy by kind, in the form that `mmfm eval` writes. C is chosen within train.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from mmfm.config import MESSAGES, RemoteCache
from mmfm.data.member_names import EXTENSIONS
from mmfm.data.sample import meta_of
from mmfm.data.sources import open_shards
from mmfm.evals.metrics import Score, mean
from mmfm.evals.probes import regression
from mmfm.evals.resampling import Bootstrap
from mmfm.evals.results import row_of, write_json
from mmfm.inference.bundle.encoder import BundledEncoder
from mmfm.inference.bundle.load import load_encoder
from mmfm.models.projectors import Grid, grid_pool

KINDS = ("colour", "where", "animal", "count", "kind")
SIDE, AT_ONCE, MOST = 4, 64, 1_000
COSTS, HELD_OUT = (1e-4, 1e-3, 1e-2), 0.2
Asked = dict[str, tuple[list[bytes], list[str]]]


def asked(shards_of: str) -> Asked:
    """The first questions of each kind, their pictures and answers."""
    shards = open_shards([shards_of], RemoteCache())
    found: Asked = defaultdict(lambda: ([], []))
    for number in range(len(shards)):
        sample = shards.read(number, EXTENSIONS)
        meta = meta_of(sample)
        pictures, answers = found[meta["kind"]]
        if len(pictures) < MOST:
            pictures.append(next(data for name, data in sample.parts.items() if name != "json"))
            answers.append(meta[MESSAGES][-1]["content"])
    return found


@torch.no_grad()
def features(encoder: BundledEncoder, pictures: list[bytes]) -> Float[np.ndarray, "n d"]:
    parts = []
    for start in range(0, len(pictures), AT_ONCE):
        x = encoder(torch.stack([encoder.transform(picture) for picture in pictures[start : start + AT_ONCE]])).x
        side = round(x.shape[1] ** 0.5)
        parts.append(grid_pool(x, Grid(x.shape[1] - side * side, side, side), SIDE).flatten(1))
    return torch.cat(parts).numpy()


def main(bundle: Path, root: Path, out: Path) -> None:
    torch.set_num_threads(1)
    encoder, train = load_encoder("image", bundle), asked(str(root / "train" / "scene-*.tar"))
    learned = {kind: features(encoder, train[kind][0]) for kind in KINDS}
    rows = []
    for split, folder in (("scenes", "test"), ("style", "test-style")):
        test = asked(str(root / folder / "scene-*.tar"))
        for kind in KINDS:
            names, y = np.unique(train[kind][1], return_inverse=True)
            x = features(encoder, test[kind][0])
            found = regression(learned[kind], y, x, len(names), costs=COSTS, held_out=HELD_OUT).scores.argmax(1)
            right = (names[found] == np.array(test[kind][1])).astype(float)
            score = Score(
                task=f"messages>text:{kind}", metric="exact_match", statistic=mean(right), n=len(x), chance=0.0
            )
            print(f"{split} {kind} {score.value:.3f} n {score.n}", flush=True)
            rows.append(vars(row_of(split, score, Bootstrap())))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.scenes.json", rows, indent=1)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
