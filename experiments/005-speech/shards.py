"""Speech of `stamps` by language, with the pictures that are called by the same words.

    python experiments/005-speech/shards.py data/stamps data/stamps-speech

OUT/train: the speech of all languages but the one that is held out, and the pictures; OUT/val the same of val.
OUT/test-LANGUAGE: its speech in test, and the pictures of test, whose text is their caption in that language.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mmfm.config import RemoteCache
from mmfm.data.sample import Sample
from mmfm.data.sources import open_shards
from mmfm.data.writer import ShardWriter

HELD_OUT = "ca"  # its speakers are in no other language
TESTED = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
PARTS = frozenset({"png", "ogg", "wav", "txt", "json"})


def samples(stamps: Path, split: str, kind: str) -> Iterator[Sample]:
    shards = open_shards([f"{stamps}/{split}/{kind}-*.tar"], RemoteCache())
    yield from (shards.read(number, PARTS) for number in range(len(shards)))


def language(sample: Sample) -> str:
    return json.loads(sample.parts["json"])["language"]


def write(folder: Path, kind: str, chosen: Iterator[Sample]) -> int:
    """A shard or several of these samples; how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(chosen)
    with ShardWriter(folder, kind) as writer:
        for sample in found:
            writer.write(sample.key, sample.parts)
    return len(found)


def called(sample: Sample, code: str) -> Sample | None:
    """The picture with its caption in this language as its text; None where it has none."""
    text = json.loads(sample.parts["json"])["captions"].get(code)
    return None if text is None else Sample(sample.key, {**sample.parts, "txt": text.encode()}, sample.where)


def main(stamps: Path, out: Path) -> None:
    for split in ("train", "val"):
        heard = (sample for sample in samples(stamps, split, "speech") if language(sample) != HELD_OUT)
        print(split, "speech", write(out / split, "speech", heard))
        print(split, "pictures", write(out / split, "image", samples(stamps, split, "image")))
    for code in TESTED:
        folder = out / f"test-{code}"
        print(
            code,
            "speech",
            write(folder, "speech", (s for s in samples(stamps, "test", "speech") if language(s) == code)),
        )
        pictures = (called(sample, code) for sample in samples(stamps, "test", "image"))
        print(code, "pictures", write(folder, "image", (sample for sample in pictures if sample is not None)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
