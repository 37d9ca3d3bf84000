"""What the data set `stamps` holds, counted as it was written, and the README that says so."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SPLITS, KINDS = ("train", "val", "test"), ("image", "speech", "sound")


@dataclass(kw_only=True)
class Made:
    """What was written: samples by (split, kind, language), seconds of sound likewise, and what was left out, why."""

    samples: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    seconds: defaultdict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))
    captions: Counter[tuple[str, str]] = field(default_factory=Counter)  # of (split, language): stamps that have one
    stamps: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    repeated: int = 0  # samples whose bytes another one of their split has too
    shared: int = 0  # captions in other languages than English that train has, and val or test too
    reduced: int = 0

    def count(self, split: str, kind: str) -> int:
        return sum(count for (one, other, _), count in self.samples.items() if (one, other) == (split, kind))

    def hours(self, split: str, kind: str) -> float:
        return sum(value for (one, other, _), value in self.seconds.items() if (one, other) == (split, kind)) / 3_600

    def tree(self) -> dict[str, Any]:
        """As the manifest has it."""
        splits = {}
        for split in SPLITS:
            spoken = {language: count for (one, kind, language), count in sorted(self.samples.items())
                      if (one, kind) == (split, "speech")}  # fmt: skip
            hours = {kind: round(self.hours(split, kind), 4) for kind in ("speech", "sound")}
            counts = {kind: self.count(split, kind) for kind in KINDS}
            splits[split] = {"stamps": self.stamps[split], **counts, "languages": spoken, "hours": hours}
        about = {"repeated": self.repeated, "shared_captions": self.shared, "reduced_pictures": self.reduced}
        return {"splits": splits, "left_out": dict(sorted(self.left_out.items())), **about}

    def line(self) -> str:
        counts = {kind: sum(self.count(split, kind) for split in SPLITS) for kind in KINDS}
        hours = sum(self.hours(split, "speech") for split in SPLITS)
        return (
            f"{counts['image']:,} pictures, {counts['speech']:,} descriptions ({hours:.1f} h), {counts['sound']:,} "
            f"sound effects; {sum(self.left_out.values()):,} files left out (README.md says which)"
        )


README = """\
# stamps

Pictures, captions in {languages} languages, spoken descriptions and sound effects: the stamps of Tux Paint, a drawing
program for children, from Debian's package `tuxpaint-stamps-default` {version}. WebDataset shards, three kinds of
samples:

- `image-*.tar`: `.png .txt .json`. The text is the English caption; `captions` in the JSON has it in other languages,
  by their code, such as `captions.fr`. A PNG of more than {longest_px} px on its longer side was reduced to that
  ({reduced} of them); the others have the package's bytes. Many have a transparent ground.
- `speech-*.tar`: `.ogg` or `.wav`, `.txt .json`. A person says the caption; the text is the caption in the spoken
  language, `language` and `english` in the JSON say which and what it means. Who speaks is not recorded.
- `sound-*.tar`: `.ogg` or `.wav`, `.txt .json`. A sound effect, such as an animal's voice, and the English caption. For
  digits, letters and some others it is a spoken word.

| split | stamps | pictures | spoken descriptions | minutes | sound effects | minutes |
|---|---|---|---|---|---|---|
{rows}

- The split is a function of the English caption: with n = int(md5(caption in lower case, without its final full
  stop), 16) % 100, a stamp is test where n < 15, val where n is 15 to 19, and train else. It holds for the stamp in all
  languages and modalities. A file of train whose bytes are also in val or test is left out, and one of val that is in
  test.
- Translators did not always tell apart what English does: {shared} captions in other languages stand in train and for
  another stamp in val or test too.
- {repeated} samples repeat the bytes of another one of their split, as where two stamps of one name share a recording.
- `classnames.txt` in each split: the distinct English captions of its pictures.
- `tokenizer.json`: byte-level BPE of {vocabulary} ids, trained on the captions of train in all languages.
- `stamps.json`: the package's version and hash, these counts, and the size and hash of every file.

## Spoken descriptions by language

| language | train | val | test | minutes |
|---|---|---|---|---|
{spoken}

## Stamps that have a caption, by language

{captions}

## Left out

{left_out}

## Licence

What the package's copyright file says of everything in it (also in `LICENSE`); the shards are made of these files and
are under the same licence:

```
{licence}
```
"""


def page(made: Made, origin: Mapping[str, str], licence: str, *, longest_px: int, vocabulary: int) -> str:
    """The README."""
    captions: Counter[str] = Counter()
    for (_, language), count in made.captions.items():
        captions[language] += count
    return README.format(
        languages=len(captions),
        version=origin["version"],
        longest_px=longest_px,
        vocabulary=vocabulary,
        reduced=f"{made.reduced:,}",
        shared=f"{made.shared:,}",
        repeated=f"{made.repeated:,}",
        rows="\n".join(_rows(made)),
        spoken="\n".join(_spoken(made)),
        captions=", ".join(f"{language} {count}" for language, count in captions.most_common()),
        left_out="\n".join(f"- {why}: {count}" for why, count in sorted(made.left_out.items())) or "Nothing.",
        licence=licence.strip(),
    )


def _rows(made: Made) -> Iterator[str]:
    for split in SPLITS:
        image, speech, sound = (made.count(split, kind) for kind in KINDS)
        spoken, heard = (f"{60 * made.hours(split, kind):.1f}" for kind in ("speech", "sound"))
        yield f"| {split} | {made.stamps[split]} | {image} | {speech:,} | {spoken} | {sound} | {heard} |"


def _spoken(made: Made) -> Iterator[str]:
    for language in sorted({language for _, kind, language in made.samples if kind == "speech"}):
        counts = [str(made.samples[split, "speech", language]) for split in SPLITS]
        minutes = sum(made.seconds[split, "speech", language] for split in SPLITS) / 60
        yield f"| {language} | {' | '.join(counts)} | {minutes:.1f} |"
