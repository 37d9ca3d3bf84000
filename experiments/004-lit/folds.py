"""Five folds of train and val, by caption, on which the settings of the arms were chosen: `test` chose nothing.

    python experiments/004-lit/folds.py data/stamps data/stamps-folds

OUT/fold-N/train and OUT/fold-N/val are shards of pictures; a caption is in the val of one fold.
"""

import hashlib
import sys
from pathlib import Path

from mmfm.config import Store
from mmfm.data.sources import open_shards
from mmfm.data.writer import ShardWriter

FOLDS = 5


def fold_of(caption: bytes) -> int:
    return hashlib.md5(b"fold " + caption.lower().rstrip(b".")).digest()[0] % FOLDS


def main(stamps: Path, out: Path) -> None:
    shards = open_shards([f"{stamps}/{split}/image-*.tar" for split in ("train", "val")], Store())
    pictures = [shards.read(number, frozenset({"png", "txt", "json"})) for number in range(len(shards))]
    for fold in range(FOLDS):
        for split in ("train", "val"):
            (out / f"fold-{fold}" / split).mkdir(parents=True, exist_ok=True)
        with (
            ShardWriter(out / f"fold-{fold}" / "train", "image") as train,
            ShardWriter(out / f"fold-{fold}" / "val", "image") as val,
        ):
            for sample in pictures:
                (val if fold_of(sample.parts["txt"]) == fold else train).write(sample.key, sample.parts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
