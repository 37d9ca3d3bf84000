"""`stamps`: pictures, captions in many languages, spoken descriptions and sound effects of Tux Paint, as shards.

The package is Debian's tuxpaint-stamps-default, fetched by apt-get and unpacked by dpkg-deb, without root. Every sample
pairs one thing with a text: a picture, a description with its caption in the spoken language, or a sound effect.
"""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from PIL import Image

from mmfm.data import shard_list
from mmfm.data.progress import ticker
from mmfm.data.writer import Item, ShardWriter, as_json
from mmfm.datasets import debian
from mmfm.datasets.debian import SPLITS
from mmfm.datasets.stamps_read import Stamp, Tree, read_tree, split_of
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.image import decode_image
from mmfm.preprocessing.tokenizer import train_tokenizer
from mmfm.runtime.files import replace_file

FORMAT = 1  # raised when the same package gives other bytes
PACKAGE = debian.Package(name="tuxpaint-stamps-default", size_mb=160, data="usr/share/tuxpaint/stamps")
KINDS = ("image", "speech", "sound")
LONGEST_PX, VOCABULARY = 256, 4_096
SHARD_SAMPLES, SHARD_BYTES = 1_000, 64 << 20
RATE_HZ, MAX_SECONDS, SILENT = 16_000, 60.0, 1e-3  # a peak below -60 dB is no sound


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
        for split in reversed(SPLITS):
            spoken = {language: count for (one, kind, language), count in sorted(self.samples.items())
                      if (one, kind) == (split, "speech")}  # fmt: skip
            hours = {kind: round(self.hours(split, kind), 4) for kind in ("speech", "sound")}
            counts = {kind: self.count(split, kind) for kind in KINDS}
            splits[split] = {"stamps": self.stamps[split], **counts, "languages": spoken, "hours": hours}
        about = {"repeated": self.repeated, "shared_captions": self.shared, "reduced_pictures": self.reduced}
        more = {"left_out": dict(sorted(self.left_out.items())), "made_with": {"pillow": PIL.__version__}}
        return {"splits": splits, **about, **more}

    def line(self) -> str:
        counts = {kind: sum(self.count(split, kind) for split in SPLITS) for kind in KINDS}
        hours = sum(self.hours(split, "speech") for split in SPLITS)
        return (
            f"{counts['image']:,} pictures, {counts['speech']:,} descriptions ({hours:.1f} h), {counts['sound']:,} "
            f"sound effects; {sum(self.left_out.values()):,} files left out (README.md says which)"
        )

    def page(self, version: str, licence: str) -> str:
        """The README."""
        captions: Counter[str] = Counter()
        for (_, language), count in self.captions.items():
            captions[language] += count
        return README.format(
            languages=len(captions),
            version=version,
            longest_px=LONGEST_PX,
            vocabulary=VOCABULARY,
            reduced=f"{self.reduced:,}",
            shared=f"{self.shared:,}",
            repeated=f"{self.repeated:,}",
            rows="\n".join(_rows(self)),
            spoken="\n".join(_spoken(self)),
            captions=", ".join(f"{language} {count}" for language, count in captions.most_common()),
            left_out="\n".join(f"- {why}: {count}" for why, count in sorted(self.left_out.items())) or "Nothing.",
            licence=licence,
        )


def _rows(made: Made) -> Iterator[str]:
    for split in reversed(SPLITS):
        image, speech, sound = (made.count(split, kind) for kind in KINDS)
        spoken, heard = (f"{60 * made.hours(split, kind):.1f}" for kind in ("speech", "sound"))
        yield f"| {split} | {made.stamps[split]} | {image} | {speech:,} | {spoken} | {sound} | {heard} |"


def _spoken(made: Made) -> Iterator[str]:
    for language in sorted({language for _, kind, language in made.samples if kind == "speech"}):
        counts = [str(made.samples[split, "speech", language]) for split in reversed(SPLITS)]
        minutes = sum(made.seconds[split, "speech", language] for split in SPLITS) / 60
        yield f"| {language} | {' | '.join(counts)} | {minutes:.1f} |"


def build(folder: Path, *, deb: Path | None = None, progress: bool = True) -> None:
    """Write the data set into `folder`, by `debian.build`."""
    arguments = {"longest_px": LONGEST_PX, "vocabulary": VOCABULARY, "format": FORMAT}
    debian.build(folder, "stamps", arguments, PACKAGE, deb, lambda out, data: _write(out, read_tree(data), progress))


# Samples


class Sound(NamedTuple):
    seconds: float
    peak: float


def _write(folder: Path, tree: Tree, progress: bool) -> Made:
    """All splits and the tokenizer."""
    made = Made(left_out=tree.left_out)
    ours = {split: [stamp for stamp in tree.stamps if split_of(stamp.caption) == split] for split in SPLITS}
    earlier: set[str] = set()
    with ticker("stamps", sum(_files(stamp) for stamp in tree.stamps), progress) as tick:
        for split in SPLITS:
            (folder / split).mkdir()
            earlier |= _write_split(folder / split, ours[split], earlier, made, tick)
            made.stamps[split] = len(ours[split])
            made.captions.update((split, language) for stamp in ours[split] for language in stamp.captions)
    texts = [text for stamp in ours["train"] for text in stamp.captions.values()]
    replace_file(folder / "tokenizer.json", train_tokenizer(texts, VOCABULARY).to_json())
    held = {pair for split in ("val", "test") for stamp in ours[split] for pair in stamp.captions.items()}
    made.shared = len(held & {pair for stamp in ours["train"] for pair in stamp.captions.items()})
    return made


def _files(stamp: Stamp) -> int:
    return len(stamp.spoken) + (stamp.picture is not None) + (stamp.effect is not None)


def _write_split(
    folder: Path, stamps: list[Stamp], earlier: set[str], made: Made, tick: Callable[..., None]
) -> set[str]:
    """Three kinds of shards and the class names; returns the hashes of what they were made from."""
    here: set[str] = set()
    names: set[str] = set()
    for kind in KINDS:
        with ShardWriter(folder, kind, samples=SHARD_SAMPLES, bytes=SHARD_BYTES) as writer:
            for stamp, path, language in _sources(stamps, kind):
                tick(f"{folder.name} {kind}")
                data = path.read_bytes()
                if (own := hashlib.sha256(data).hexdigest()) in earlier:
                    made.left_out["the same bytes as in val or test"] += 1
                    continue
                try:
                    item, seconds = _sample(kind, stamp, path.suffix[1:].lower(), data, language)
                except BadSample as why:
                    made.left_out[why.code] += 1
                    continue
                writer.write(*item)
                made.repeated, made.reduced = made.repeated + (own in here), made.reduced + _is_reduced(item, data)
                made.samples[folder.name, kind, language] += 1
                made.seconds[folder.name, kind, language] += seconds
                here.add(own)
                if kind == "image":
                    names.add(stamp.caption)
    replace_file(folder / "classnames.txt", "".join(f"{name}\n" for name in sorted(names)))
    shard_list.write_list(folder)
    return here


def _sources(stamps: list[Stamp], kind: str) -> Iterator[tuple[Stamp, Path, str]]:
    """Each file of this kind with its stamp and the language of its text."""
    for stamp in stamps:
        if kind == "image" and stamp.picture:
            yield stamp, stamp.picture, "en"
        elif kind == "sound" and stamp.effect:
            yield stamp, stamp.effect, "en"
        elif kind == "speech":
            yield from ((stamp, path, language) for language, path in sorted(stamp.spoken.items()))


def _sample(kind: str, stamp: Stamp, extension: str, data: bytes, language: str) -> tuple[Item, float]:
    """The sample, and its seconds of sound. Raises BadSample."""
    flat, caption = stamp.name.replace("/", "-").replace(".", "-"), stamp.captions[language]
    about: dict[str, Any] = {"stamp": stamp.name, "caption": caption, "language": language}
    if kind == "image":
        about["captions"] = {name: text for name, text in stamp.captions.items() if name != "en"}
        parts, seconds, key = {extension: _picture(data, extension)}, 0.0, f"image-{flat}"
    else:
        sound = _sound(data)
        about |= {"english": stamp.caption} if kind == "speech" else {}
        parts, seconds = {extension: data}, sound.seconds
        key = f"speech-{language.replace('@', '-')}-{flat}" if kind == "speech" else f"sound-{flat}"
    return Item(key, {**parts, "txt": caption.encode("utf-8"), "json": as_json(about)}), seconds


def _picture(data: bytes, extension: str) -> bytes:
    """As it is, or a PNG reduced to LONGEST_PX; alpha is kept. Raises BadSample."""
    decode_image(data)
    image = Image.open(io.BytesIO(data))
    if extension != "png" or max(image.size) <= LONGEST_PX:
        return data
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    scale = LONGEST_PX / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(file, format="PNG")
    return file.getvalue()


def _is_reduced(item: Item, data: bytes) -> bool:
    return next(iter(item.parts.values())) != data


def _sound(data: bytes) -> Sound:
    wave = decode_audio(data, rate_hz=RATE_HZ, max_seconds=MAX_SECONDS)
    sound = Sound(len(wave) / RATE_HZ, float(wave.abs().max()))
    if sound.peak < SILENT:
        raise BadSample("audio_silent", f"the sound never exceeds {sound.peak:g} of full scale; leave it out")
    return sound
