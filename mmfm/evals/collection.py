"""Data sets as they lie on disk, read as if they were shards: folders, tables, captions in JSON, transcripts, tars.

All become numbered samples of one picture or sound each, whose text is the first caption; what else is known of them
are the `items`. Files are read when they are asked for, and pass the same decoders as shards: one that is broken is
counted and named there. Nothing is left out in silence: `ignored` counts other files, `absent` names missing ones.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmfm.config import RemoteCache, UserError, require
from mmfm.data.index import MAX_PART, MODALITY
from mmfm.data.sample import Sample, meta_of, text_of
from mmfm.data.sources import open_shards
from mmfm.evals.suite_data import ClassFolders, Coco, Data, Table, Tars, Transcripts
from mmfm.evals.tables import Place, read_coco, read_table, read_transcripts
from mmfm.preprocessing import BadSample

CAPTION_FIELDS = ("captions", "caption", "text")
Label = str | int
NO_WORDS = "-"  # in place of an empty text, which a sample must not have; what is scored is the item's own


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is known of a sample besides its picture or sound."""

    key: str
    captions: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    fold: int = 0


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A data set: `items`, and samples by the same numbers. `marks`: its classes, where the layout lists them.

    `source` is what messages call it, `hint` what its suite expects, `mended` how many texts were not whole.
    """

    items: tuple[Item, ...]
    parts: Callable[[int], Mapping[str, bytes]]
    where: Callable[[int], str]
    ignored: Counter[str] = field(default_factory=Counter)
    absent: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    source: str = ""
    hint: str = ""
    mended: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Sample:
        item = self.items[number]
        text = {"txt": (item.captions[0] or NO_WORDS).encode()} if item.captions else {}
        return Sample(item.key, {**self.parts(number), **text}, self.where(number))


def open_data(
    data: Data, root: Path, media: Collection[str], hint: str, store: RemoteCache, silence: bool = False
) -> Opened:
    """The samples of a data set that have `media` ("image", "audio"). Raises UserError where it is not as declared.

    `silence`: texts may be empty. Halves of surrogate pairs, which JSON can hold and no text can, become U+FFFD.
    """
    found = opened(data, root, media, hint, store, silence)
    items = tuple(map(_whole, found.items))
    mended = sum(a != b for old, new in zip(found.items, items, strict=True) for a, b in _pairs(old, new))
    return replace(found, items=items, mended=mended, source=naming(data), hint=hint)


def whole(text: str) -> str:
    """Two halves of a pair become one sign, and a half alone becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _whole(item: Item) -> Item:
    labels = tuple(whole(label) if isinstance(label, str) else label for label in item.labels)
    return replace(item, captions=tuple(map(whole, item.captions)), labels=labels)


def _pairs(old: Item, new: Item) -> Iterator[tuple[Label, Label]]:
    yield from zip((*old.captions, *old.labels), (*new.captions, *new.labels), strict=True)


def naming(data: Data) -> str:
    """What messages call a data set."""
    parts = (getattr(data, name, "") for name in ("shards", "path", "table", "annotations"))
    place, chosen = next(filter(None, parts), "."), getattr(data, "folds", ()) or getattr(data, "split", "")
    return f"{type(data).__name__} {place}" + (f" ({chosen})" if chosen else "")


def opened(data: Data, root: Path, media: Collection[str], hint: str, store: RemoteCache, silence: bool) -> Opened:
    if isinstance(data, Tars):
        return open_tars(data, root, media, store, silence)
    if isinstance(data, ClassFolders):
        return open_folders(there(root / data.path, hint, folder=True), media)
    if isinstance(data, Table):
        folder = there(root / data.media, hint, folder=True)
        return open_places(read_table(data, there(root / data.table, hint), silence), folder, data, media, hint)
    if isinstance(data, Coco):
        folder = there(root / data.media, hint, folder=True)
        return open_places(read_coco(data, there(root / data.annotations, hint), silence), folder, data, media, hint)
    assert isinstance(data, Transcripts)
    folder = there(root / data.path, hint, folder=True)
    return open_places(read_transcripts(folder, silence), folder, data, media, hint)


def there(path: Path, hint: str, folder: bool = False) -> Path:
    held = path.is_dir() if folder else path.is_file()
    require(held, f"there is no {'folder' if folder else 'file'} {path}; {hint}")
    return path


def open_folders(folder: Path, media: Collection[str]) -> Opened:
    """The samples of path/class/**, classes and files in the order of their names."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    told = f"{folder} holds no folder of a class; put the files of each class into a folder of its name"
    require(bool(classes), told)
    found = [(name, path) for name in classes for path in sorted((folder / name).rglob("*")) if not path.is_dir()]
    files = [(name, path) for name, path in found if kind_of(path) in media]
    names = ", ".join(extension for extension, kind in MODALITY.items() if kind in media)
    require(bool(files), f"{folder}: its {len(classes)} folders of classes hold no {' or '.join(media)} ({names})")
    items = [Item(key=key_of(path, folder), labels=(name,)) for name, path in files]
    return of_files(items, [path for _, path in files], ignored=others(found, media), marks=tuple(classes))


def others(found: Iterable[tuple[str, Path]], media: Collection[str]) -> Counter[str]:
    return Counter(path.suffix[1:].lower() or "(no ending)" for _, path in found if kind_of(path) not in media)


def open_places(
    places: Sequence[Place], folder: Path, data: Table | Coco | Transcripts, media: Collection[str], hint: str
) -> Opened:
    """Of a table's rows: a file each, which must be there, lie in the folder, and be of `media`."""
    paths = [inside(folder, place) for place in places]
    lacking = [not path.is_file() for path in paths]
    if any(lacking) and not (isinstance(data, Table) and data.may_lack):
        first = lacking.index(True)
        told = f"{places[first].where}: there is no file {paths[first]}, nor {sum(lacking) - 1} others of {len(places)}"
        raise UserError(f"{told}; {hint}")
    both = [(place, path) for place, path, lack in zip(places, paths, lacking, strict=True) if not lack]
    require(bool(both), f"{folder} holds none of the {len(places)} files that are listed; {hint}")
    for place, path in both:
        names = ", ".join(extension for extension, kind in MODALITY.items() if kind in media)
        require(kind_of(path) in media, f"{place.where}: {path.name} is no {' or '.join(media)} ({names})")
    items = [
        Item(key=key_of(path, folder), captions=place.captions, labels=place.labels, fold=place.fold)
        for place, path in both
    ]
    absent = tuple(place.file for place, lack in zip(places, lacking, strict=True) if lack)
    return of_files(items, [path for _, path in both], absent=absent)


def inside(folder: Path, place: Place) -> Path:
    """The file that a table names; it may not lead out of the folder."""
    name = Path(place.file)
    stays = not name.is_absolute() and ".." not in name.parts
    require(stays, f"{place.where}: {place.file!r} leads out of {folder}; name files inside it")
    return folder / name


def key_of(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def kind_of(path: Path) -> str | None:
    kind = MODALITY.get(path.suffix[1:].lower())
    return None if kind == "text" else kind


def of_files(
    items: Sequence[Item],
    paths: Sequence[Path],
    *,
    ignored: Counter[str] | None = None,
    absent: tuple[str, ...] = (),
    marks: tuple[str, ...] = (),
) -> Opened:
    """Two files that differ in their ending alone would be one sample, so they are refused."""
    counts = Counter(item.key for item in items)
    twice = next((path for item, path in zip(items, paths, strict=True) if counts[item.key] > 1), None)
    require(twice is None, f"{twice}: another file has the same name with another ending; rename or remove one")

    def parts(number: int) -> dict[str, bytes]:
        path = paths[number]
        size = path.stat().st_size
        require(size <= MAX_PART, f"{path} has {size} bytes, over {MAX_PART}; cut it into samples")
        return {path.suffix[1:].lower(): path.read_bytes()}

    return Opened(
        items=tuple(items),
        parts=parts,
        where=lambda number: str(paths[number]),
        ignored=ignored or Counter(),
        absent=absent,
        marks=marks,
    )


def open_tars(data: Tars, root: Path, media: Collection[str], store: RemoteCache, silence: bool = False) -> Opened:
    """The samples of shards, which are looked through once for what they say of themselves."""
    spec = data.shards if "://" in data.shards else ",".join(str(root / part) for part in data.shards.split(","))
    shards = open_shards([spec], store)
    names = [extension for extension, kind in MODALITY.items() if kind in media]
    held = [number for number in range(len(shards)) if media_of(shards.extensions(number)) >= set(media)]
    require(bool(held), f"{spec}: none of its {len(shards)} samples holds {' and '.join(media)}")
    items = [described(shards.read(number, ("txt", "json", "cls")), data.captions, silence) for number in held]
    ignored = Counter(shards.ignored)
    if len(held) < len(shards):
        ignored[f"samples without {' and '.join(media)}"] = len(shards) - len(held)
    return Opened(
        items=tuple(items),
        parts=lambda number: shards.read(held[number], names).parts,
        where=lambda number: shards.where(held[number]),
        ignored=ignored,
    )


def media_of(extensions: Iterable[str]) -> set[str | None]:
    return {MODALITY.get(extension) for extension in extensions}


def described(sample: Sample, field: str, silence: bool = False) -> Item:
    """Captions and label of a sample of a tar. Raises UserError for a text or .cls that cannot be used."""
    try:
        captions, meta = captions_of(sample, field, silence), meta_of(sample)
        mark = sample.parts.get("cls")
        whole = mark is None or mark.strip().isdigit()
        require(whole, f"{sample.where}: the .cls is no whole number; write the class's place in the list, from 0")
        label: Any = meta.get("label") if mark is None else int(mark)
        known = isinstance(label, str | int) and not isinstance(label, bool)
        return Item(key=sample.key, captions=captions, labels=(label,) if known else captions[:1])
    except BadSample as why:
        raise UserError(str(why)) from None


def captions_of(sample: Sample, field: str, silence: bool = False) -> tuple[str, ...]:
    """All captions of a sample of a tar; `silence`: an empty one too, where it is the only one."""
    meta = meta_of(sample)
    if field == "" and "txt" in sample.parts:
        if silence and not sample.parts["txt"].strip():
            return ("",)
        return tuple(line.strip() for line in (text_of(sample) or "").split("\n") if line.strip())
    names = (field,) if field else CAPTION_FIELDS
    value = next((meta[name] for name in names if name in meta), [])
    captions = [value] if isinstance(value, str) else value
    good = isinstance(captions, list) and all(isinstance(text, str) and (silence or text.strip()) for text in captions)
    require(good, f"{sample.where}: its captions are no text and no list of texts that say something")
    return tuple(text.strip() for text in captions)
