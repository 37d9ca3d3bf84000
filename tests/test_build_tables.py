"""`mmfm data build`: tables and folders as people have them, of which nothing is lost without a word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mmfm.config import Text, UserError
from mmfm.data.sample import Sample, text_of
from mmfm.data.shards import Shards
from mmfm.datasets.build import build
from mmfm.datasets.build_rows import Columns


def built(source: Any, out: Path, **options: Any) -> dict[str, dict[str, bytes]]:
    build(source, out, progress=False, **options)
    found = Shards(sorted(out.glob("*.tar")))
    return {found.key(n): found[n].parts for n in range(len(found))}


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


CAPTIONS = [["a dog", "ein Hund"], ["a cat"], None, [], ["", "a bird", None], "a fish", 5, float("nan")]


def test_several_captions_are_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first is the .txt, all are in the .json, and training can draw among them; never Python's own writing."""
    records = [{"id": f"r{n}", "captions": value, "source": "s"} for n, value in enumerate(CAPTIONS)]
    found = built(lines(tmp_path / "t.jsonl", records), tmp_path / "out", columns=Columns(key="id"))
    texts = {key: parts["txt"].decode() for key, parts in found.items() if "txt" in parts}
    assert texts == {"r0": "a dog", "r1": "a cat", "r4": "a bird", "r5": "a fish", "r6": "5"}
    about = {key: json.loads(parts["json"]) for key, parts in found.items()}
    assert about["r0"] == {"source": "s", "captions": ["a dog", "ein Hund"]} and about["r5"] == {"source": "s"}
    sample = Sample("r0", found["r0"], "r0")
    drawn = {text_of(sample, (Text(field="captions"),), draw) for draw in (0.1, 0.9)}
    assert drawn == {"a dog", "ein Hund"}
    assert "has several captions: the .txt is the first, and the .json has all, among" in capsys.readouterr().out
    left = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    assert {line["code"] for line in map(json.loads, left)} == {"empty_sample"}


def test_captions_are_alike_in_every_kind_of_table(tmp_path: Path) -> None:
    """JSONL, Parquet and a dataset: lists, bytes, and nothing where nothing is."""
    records = [{"captions": value} for value in CAPTIONS[:2]]
    expected = built(lines(tmp_path / "t.jsonl", records), tmp_path / "jsonl")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "t.parquet")
    assert built(tmp_path / "t.parquet", tmp_path / "parquet") == expected
    assert built(datasets.Dataset.from_list(records), tmp_path / "dataset") == expected
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "Größe".encode()}]), tmp_path / "b.parquet")
    assert built(tmp_path / "b.parquet", tmp_path / "bytes") == {"000000000": {"txt": "Größe".encode()}}


def test_an_object_is_no_caption_and_its_field_is(tmp_path: Path) -> None:
    """Refused with the names of its fields; the remedy that is told works, also for a list of objects (as of COCO)."""
    records = [{"caption": {"en": "a dog", "fr": "un chien"}, "n": 1}]
    table = lines(tmp_path / "t.jsonl", records)
    words = r"row 0: the column 'caption' holds an object with en, fr, and no text; name one .*: --text caption\.en"
    with pytest.raises(UserError, match=words):
        built(table, tmp_path / "out")
    found = built(table, tmp_path / "out", columns=Columns(text="caption.en"))["000000000"]
    assert found["txt"] == b"a dog" and json.loads(found["json"]) == records[0]
    coco = lines(tmp_path / "c.jsonl", [{"sentences": [{"raw": "one"}, {"raw": "two"}]}])
    found = built(coco, tmp_path / "coco", columns=Columns(text="sentences.raw"))["000000000"]
    assert found["txt"] == b"one" and text_of(Sample("", found, ""), (Text(field="sentences.raw"),), 0.9) == "two"
    with pytest.raises(UserError, match="holds a list of lists; make it a list of texts"):
        built(lines(tmp_path / "l.jsonl", [{"text": [["a"]]}]), tmp_path / "lists")


def test_a_path_that_is_missing_or_none(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    """NaN, null and nothing are no picture; a list, a number and a URL are refused by their row, with a remedy."""
    (tmp_path / "a.png").write_bytes(encode_image(np.zeros((2, 2, 3), np.uint8)))
    values = ["a.png", None, "", float("nan")]
    records = [{"image": value, "text": f"{n}"} for n, value in enumerate(values)]
    found = built(lines(tmp_path / "t.jsonl", records), tmp_path / "out")
    assert [set(parts) for parts in found.values()] == [{"png", "txt"}, {"txt"}, {"txt"}, {"txt"}]
    for value, words in (
        (["a.png"], "row 1: the column 'image' holds a list, no path; choose another"),
        ("https://x.org/a.png", r"holds a URL \(https://x.org/a.png\); fetch the files first, and give their paths"),
    ):
        with pytest.raises(UserError, match=words):
            built(lines(tmp_path / "u.jsonl", [records[0], {"image": value, "text": "x"}]), tmp_path / "bad")


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", ", "])
def test_any_separator_of_a_csv(tmp_path: Path, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the header, said aloud where it is no comma; a line that begins with # is a line, and so is its caption."""
    rows = [("n", "caption"), ("#1", "#dog, or cat"), ("2", "a; b | c"), ("# 3", "plain")]
    quoted = [mark.join(f'"{cell}"' for cell in row) for row in rows]
    (tmp_path / "t.csv").write_text("\n".join(quoted) + "\n")
    found = built(tmp_path / "t.csv", tmp_path / "out", columns=Columns(text="caption", key="n"))
    texts = {key: parts["txt"].decode() for key, parts in found.items()}
    assert texts == {"#1": "#dog, or cat", "2": "a; b | c", "# 3": "plain"}
    assert ("t.csv is separated by" in capsys.readouterr().out) == (mark.strip() not in (",",))


@pytest.fixture
def pictures(tmp_path: Path, encode_image: Callable[..., bytes]) -> Path:
    root = tmp_path / "a [b], {c,d} é"
    for n in range(3):
        (root / "in x").mkdir(parents=True, exist_ok=True)
        (root / "in x" / f"{n} [1].png").write_bytes(encode_image(np.full((2, 2, 3), n, np.uint8)))
    return root


def test_a_folder_that_says_what_its_files_are(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hugging Face's metadata.csv gives the captions; what it does not name is told; one elsewhere is refused."""
    (pictures / "metadata.csv").write_text("file_name,text\nin x/0 [1].png,nought\nin x/2 [1].png,two\n")
    found = built(pictures, tmp_path / "out")
    assert [parts["txt"] for parts in found.values()] == [b"nought", b"two"]
    said = capsys.readouterr().out
    assert "metadata.csv" in said and "not named in it: 1 .png" in said
    with pytest.raises(UserError, match=r"metadata.csv says what its files are; leave it out"):
        built(pictures, tmp_path / "classes", classes=True)
    (pictures / "metadata.csv").rename(pictures / "in x" / "metadata.csv")
    with pytest.raises(UserError, match=r"says what the files beside it are, .*; build .*in x, or take the table away"):
        built(pictures, tmp_path / "above")
    (pictures / "in x" / "metadata.csv").rename(pictures / "metadata.csv")
    (pictures / "metadata.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"none with a usual name; .*; or take metadata.csv away, and the folder's"):
        built(pictures, tmp_path / "odd")


def test_linked_folders_are_read_and_nothing_goes_without_a_word(
    pictures: Path, tmp_path: Path, encode_audio: Any, sine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link to a folder is that folder; one to a folder around it ends; other kinds are told with what to do."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "s.wave").write_bytes(encode_audio(sine(440, 0.1)))
    (pictures / "linked").symlink_to(elsewhere)
    (pictures / "around").symlink_to(pictures)
    (pictures / "nothing").symlink_to(tmp_path / "none")
    for name in ("x.heic", "y.m4a", "captions.csv", ".z.png", ".DS_Store"):
        (pictures / name).write_bytes(b"x")
    found = built(pictures, tmp_path / "out")
    assert sorted(found) == [*(f"in x-{n} [1]" for n in range(3)), "linked-s"] and set(found["linked-s"]) == {"wav"}
    said = capsys.readouterr().out
    for words in (
        *("1 .heic (convert them to PNG, JPEG or WebP)", "1 .m4a (convert them to WAV", "1 .csv (a table is built by"),
        *("1 hidden", "1 link to a folder around it", "1 link to nothing"),
    ):
        assert words in said
    with pytest.raises(UserError, match=r"holds shards already \(1 .tar\), .*; give that folder to a run"):
        built(tmp_path / "out", tmp_path / "again")
    with pytest.raises(UserError, match=r"holds no file of a known kind .*; it holds 1 .gif \(convert them to PNG"):
        (tmp_path / "gifs").mkdir()
        (tmp_path / "gifs" / "a.gif").write_bytes(b"x")
        built(tmp_path / "gifs", tmp_path / "none")
