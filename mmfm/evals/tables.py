"""What tables say of files: a .csv or .tsv, COCO's and Karpathy's JSON, LibriSpeech's transcripts. Standard library."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmfm.config import UserError, require
from mmfm.data.index import MODALITY
from mmfm.evals.suite_data import Coco, Names, Table

MAX_FIELD = 1 << 17  # characters of one cell


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file that a table tells of. `where` names the table and the row."""

    file: str
    where: str
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    fold: int = 0


def read_table(data: Table, path: Path, silence: bool = False) -> list[Place]:
    """A place for each file, in the order of their first rows; later rows of it add captions and labels. `silence`:
    captions may be empty."""
    places: dict[str, Place] = {}
    for where, row in rows(path, data.columns, data.comment):
        place = of_row(data, where, row, silence)
        if data.folds and place.fold not in data.folds:
            continue
        before = places.get(place.file)
        if before is not None:
            captions, labels = before.captions + place.captions, before.labels + place.labels
            place = replace(before, captions=captions, labels=tuple(dict.fromkeys(labels)))
        places[place.file] = place
    require(bool(places), f"{path} has no rows" + (f" of the folds {data.folds}" if data.folds else ""))
    return list(places.values())


def rows(path: Path, columns: Sequence[str] = (), comment: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Each row by its columns, and where it begins. Raises UserError for a row that is too short, and for no CSV.

    Every line is a row's, but blank ones and, before the first row, those that begin with `comment`.
    """
    lines = text_lines(path)
    first = next(
        (number for number, line in enumerate(lines) if not (comment and line.startswith(comment))), len(lines)
    )
    reader = csv.reader(lines[first:], delimiter=delimiter(path), skipinitialspace=True, strict=True)
    names, begins = list(columns), first + 1
    csv.field_size_limit(MAX_FIELD)  # of the whole process: others may have set another
    try:
        for cells in reader:
            where, begins = f"{path}, line {begins}", first + 1 + reader.line_num
            if not any(map(str.strip, cells)) and len(cells) < 2:
                continue  # a blank line
            if not names:
                names = [cell.strip() for cell in cells]
                continue
            short = f"{where} has {len(cells)} cells, but {path.name} has {len(names)} columns"
            require(len(cells) >= len(names), short)
            yield where, dict(zip(names, (cell.strip() for cell in cells), strict=False))
    except csv.Error as why:
        told = f"{path}, line {begins}: this is no row of a table ({why}); write the file as UTF-8 CSV"
        raise UserError(told) from None


def delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def text_lines(path: Path) -> list[str]:
    """The lines with their ends; a caption may hold any other of Unicode's separators."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # whose ends of lines are all \n
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text; convert it") from None
    return [f"{line}\n" for line in text.removesuffix("\n").split("\n")] if text else []


def of_row(data: Table, where: str, row: Mapping[str, str], silence: bool = False) -> Place:
    def cell(column: str) -> str:
        hint = "; for lines of comment before the heading say comment='#'" * next(iter(row), "").startswith("#")
        known = f"{where}: there is no column {column!r}; there are {', '.join(row)}{hint}"
        require(column in row, known)
        return row[column]

    file = data.prefix + cell(data.file)
    known = Path(file).suffix[1:].lower() in MODALITY
    marks = (cell(data.labels),) if data.labels else ()
    labels = [mark.strip() for cells in marks for mark in (cells.split(data.between) if data.between else [cells])]
    captions = tuple(cell(column) for column in data.captions)
    require(silence or all(captions), f"{where}: the caption of {file} is empty; write one or take the row away")
    fold = cell(data.fold) if data.fold else "0"
    require(fold.isdigit(), f"{where}: the fold {fold!r} is no whole number")
    return Place(
        file=file if known else file + data.suffix,
        where=where,
        captions=captions,
        labels=tuple(label for label in labels if label),
        fold=int(fold),
    )


def read_coco(data: Coco, path: Path, silence: bool = False) -> list[Place]:
    """The pictures that have a caption, in the order of the file. `silence`: captions may be empty."""
    tree = read_json(path)
    images: Any = tree.get("images") if isinstance(tree, dict) else None
    rule = f"{path} lists no \"images\"; give COCO's captions_*.json or Karpathy's dataset_*.json"
    require(isinstance(images, list) and bool(images), rule)
    try:
        places = karpathy(images, data.split, path) if "sentences" in images[0] else coco(tree, images, path)
    except (KeyError, TypeError, AttributeError) as why:
        raise UserError(f"{path} is not as COCO's captions are ({type(why).__name__}: {why})") from None
    require(bool(places), f"{path} has no captions" + (f" of the split {data.split!r}" if data.split else ""))
    for place in places:
        require(silence or all(place.captions), f"{place.where}: a caption is empty; write one or take it away")
    return places


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as why:
        raise UserError(f"{path} is no JSON ({why})") from None


def coco(tree: dict[str, Any], images: list[Any], path: Path) -> list[Place]:
    captions: dict[Any, list[str]] = {image["id"]: [] for image in images}
    for number, entry in enumerate(tree["annotations"]):
        known = f"{path}: annotation {number} is of image {entry['image_id']}, which is not among the images"
        require(entry["image_id"] in captions, known)
        captions[entry["image_id"]].append(entry["caption"].strip())
    return [
        Place(file=image["file_name"], where=f"{path}: image {image['id']}", captions=tuple(captions[image["id"]]))
        for image in images
        if captions[image["id"]]
    ]


def karpathy(images: list[Any], split: str, path: Path) -> list[Place]:
    """COCO's pictures lie in folders, which "filepath" names."""
    chosen = [image for image in images if not split or image["split"] == split]
    return [
        Place(
            file="/".join(filter(None, (image.get("filepath", ""), image["filename"]))),
            where=f"{path}: {image['filename']}",
            captions=tuple(sentence["raw"].strip() for sentence in image["sentences"]),
        )
        for image in chosen
    ]


def read_transcripts(folder: Path, silence: bool = False) -> list[Place]:
    """Every line of every *.trans.txt below the folder. `silence`: lines may be without words."""
    places = []
    for path in sorted(folder.rglob("*.trans.txt")):
        for number, line in enumerate(text_lines(path), 1):
            name, _, words = line.strip().partition(" ")
            if not name:
                continue
            told = f"{path}, line {number}: {name!r} has no words; write them or take it away"
            require(silence or bool(words.strip()), told)
            file = (path.parent / f"{name}.flac").relative_to(folder).as_posix()
            places.append(Place(file=file, where=f"{path}, line {number}", captions=(words.strip(),)))
    require(bool(places), f"{folder} holds no *.trans.txt")
    return places


def read_names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Marks and names of a list of classes: a name on each line, or what labels say, a tab, and the name."""
    lines = [line.strip().partition("\t") for line in text_lines(path) if line.strip()]
    require(bool(lines), f"{path} is empty; give a text file with one class a line")
    names = [(mark, name.strip() or mark) for mark, _, name in lines]
    return distinct(names, path)


def read_names_table(names: Names, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = list(rows(path))
    require(bool(found), f"{path} has no rows")
    for column in (names.mark, names.name):
        require(column in found[0][1], f"{path} has no column {column!r}; there are {', '.join(found[0][1])}")
    return distinct([(row[names.mark], row[names.name]) for _, row in found], path)


def distinct(names: Sequence[tuple[str, str]], path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    marks = [mark for mark, _ in names]
    twice = next((mark for mark in marks if marks.count(mark) > 1), None) if len(set(marks)) < len(marks) else None
    require(twice is None, f"{path} lists {twice!r} twice; name each class once")
    return tuple(marks), tuple(name for _, name in names)
