"""What the shots tell without a language model: the name of the shown picture whose features are nearest.

    python experiments/013-shots/nearest.py bundles/effnet data/scenes runs/nearest

BUNDLE: the locked tower's. Features are the mean of its map, less the mean over all pictures that are shown; nearness
is the cosine. results.shots.json of the last folder has its accuracy by kind, in the form that `mmfm eval` writes.
Where nothing is shown it guesses, and so it does where all that is shown has one name.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmfm.config import MESSAGES, RemoteCache
from mmfm.data.member_names import EXTENSIONS, numbered
from mmfm.data.sample import Sample, meta_of
from mmfm.data.sources import open_shards
from mmfm.evals.metrics import Score, mean
from mmfm.evals.resampling import Bootstrap
from mmfm.evals.results import row_of, write_json
from mmfm.inference.bundle.encoder import BundledEncoder
from mmfm.inference.bundle.load import load_encoder

AT_ONCE = 64


class Shown(NamedTuple):
    """Pictures of a conversation, the names of all but the last, and the right one of two for that."""

    kind: str
    pictures: tuple[bytes, ...]
    names: tuple[str, ...]
    answer: str


def shown(sample: Sample) -> Shown:
    meta = meta_of(sample)
    files = sorted((numbered(name), data) for name, data in sample.parts.items() if name != "json")
    said = [turn["content"] for turn in meta[MESSAGES] if turn["role"] == "assistant"]
    return Shown(meta["kind"], tuple(data for _, data in files), tuple(said[:-1]), said[-1])


@torch.no_grad()
def features(encoder: BundledEncoder, pictures: list[bytes]) -> Float[Tensor, "n width"]:
    """Unit vectors about the mean of all."""
    parts = []
    for start in range(0, len(pictures), AT_ONCE):
        x = torch.stack([encoder.transform(picture) for picture in pictures[start : start + AT_ONCE]])
        parts.append(encoder(x).x.mean(1))
    found = torch.cat(parts)
    return F.normalize(found - found.mean(0), dim=1)


def accuracy(one: Shown, x: Float[Tensor, "pictures width"]) -> float:
    """1, 0, or a half for a guess."""
    if len(set(one.names)) < 2:
        return 0.5
    nearest = int((x[:-1] @ x[-1]).argmax())
    return float(one.names[nearest] == one.answer)


def main(bundle: Path, root: Path, out: Path) -> None:
    torch.set_num_threads(1)
    shards = open_shards([str(root / "test" / "shots-*.tar")], RemoteCache())
    asked = [shown(shards.read(number, EXTENSIONS)) for number in range(len(shards))]
    x = features(load_encoder("image", bundle), [picture for one in asked for picture in one.pictures])
    right = defaultdict(list)
    for one, own in zip(asked, x.split([len(one.pictures) for one in asked]), strict=True):
        right[one.kind].append(accuracy(one, own))
    scores = [
        Score(
            task=f"messages>text:{kind}",
            metric="choice_acc",
            statistic=mean(np.array(values)),
            n=len(values),
            chance=0.5,
        )
        for kind, values in sorted(right.items())
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.shots.json", [vars(row_of("shots", score, Bootstrap())) for score in scores], indent=1)
    for score in scores:
        print(f"{score.task} {score.value:.3f} n {score.n}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
