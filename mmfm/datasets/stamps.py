"""`stamps`: pictures, captions in many languages, spoken descriptions and sound effects of Tux Paint, as shards.

The package is Debian's tuxpaint-stamps-default, fetched by apt-get and unpacked by dpkg-deb, without root. Every sample
pairs one thing with a text: a picture, a description with its caption in the spoken language, or a sound effect.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from PIL import Image

from mmfm.data import index
from mmfm.data.progress import ticker
from mmfm.data.writer import Item, ShardWriter, as_json
from mmfm.datasets import debian
from mmfm.datasets.folder import PARTIAL, complete, prints
from mmfm.datasets.stamps_page import KINDS, Made, page
from mmfm.datasets.stamps_read import Stamp, Tree, read_tree, split_of
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.image import decode_image
from mmfm.preprocessing.tokenizer import train_tokenizer
from mmfm.runtime.files import output_folder, replace_file

FORMAT = 1  # raised when the same package gives other bytes
NAME = "tuxpaint-stamps-default"
STAMPS, COPYRIGHT = "usr/share/tuxpaint/stamps", f"usr/share/doc/{NAME}/copyright"
PACKAGE = debian.Package(name=NAME, size_mb=160, holds=(STAMPS, COPYRIGHT))
SPLITS = ("test", "val", "train")  # in this order: what is in one of them is in none that follows
LONGEST_PX, VOCABULARY = 256, 4_096
SHARD_SAMPLES, SHARD_BYTES = 1_000, 64 << 20
RATE_HZ, MAX_SECONDS, SILENT = 16_000, 60.0, 1e-3  # a peak below -60 dB is no sound


def build(folder: Path, *, deb: Path | None = None, progress: bool = True) -> None:
    """Write the data set into `folder`, which must be new or empty, or hold just this data set: then nothing is done.

    `deb` is the package; without it apt-get downloads it into FOLDER.deb, where it stays. UserError if that fails.
    """
    wanted = {"longest_px": LONGEST_PX, "vocabulary": VOCABULARY, "format": FORMAT}
    if complete(folder, "stamps", wanted):
        print(f"{folder} is complete already; nothing to do")
        return
    package = deb or debian.fetch(PACKAGE, folder.resolve().with_name(f"{folder.resolve().name}.deb"))
    with output_folder(folder, PARTIAL) as partial:
        with debian.unpacked(PACKAGE, package, partial) as root:
            made = _write(partial, read_tree(root / STAMPS), progress)
            licence = (root / COPYRIGHT).read_text(encoding="utf-8")
        origin = debian.origin(PACKAGE, package)
        replace_file(partial / "LICENSE", licence)
        replace_file(partial / "README.md", page(made, origin, licence, longest_px=LONGEST_PX, vocabulary=VOCABULARY))
        manifest = {
            "arguments": wanted,
            "package": {"name": NAME, **origin},
            "made_with": {"pillow": PIL.__version__},
            **made.tree(),
            "files": prints(partial),
        }
        replace_file(partial / "stamps.json", as_json(manifest))
    print(f"{folder} is complete: {made.line()}")


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
    index.write_list(folder)
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
