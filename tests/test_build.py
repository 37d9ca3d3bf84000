"""`mmfm data build`: what went in comes out, byte for byte, from any kind of input, through any stop."""

import csv
import datetime
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from test_files import LOCK
from test_process import python

from mmfm.__main__ import main
from mmfm.config import UserError
from mmfm.data import shard_list
from mmfm.data.shards import Shards
from mmfm.data.writer import Item
from mmfm.datasets import build as building
from mmfm.datasets import build_check
from mmfm.datasets.build import build
from mmfm.datasets.build_rows import Columns, key_of

ROWS = 7


@pytest.fixture
def files(tmp_path: Path, encode_image: Callable[..., bytes], encode_audio: Callable[..., bytes], sine: Any) -> Path:
    """A folder of seven pictures and sounds, in folders, of several formats, with captions and a JSON."""
    root = tmp_path / "files"
    for number in range(ROWS):
        folder = root / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4, 3), 30 * number, np.uint8)
        name, layout = [("png", "PNG"), ("JPEG", "JPEG"), ("webp", "WEBP")][number % 3]
        (folder / f"n.{number}.{name}").write_bytes(encode_image(pixels, layout))
        (folder / f"n.{number}.flac").write_bytes(encode_audio(sine(200.0 + number, 0.05), layout="FLAC"))
        (folder / f"n.{number}.txt").write_text(f"Größe {number}\n", "utf-8")
        (folder / f"n.{number}.json").write_text(json.dumps({"number": number}))
    return root


def path_of(files: Path, number: int, kind: str) -> Path:
    name = ["png", "JPEG", "webp"][number % 3] if kind == "image" else kind
    return files / ("cat" if number % 2 else "dog") / f"n.{number}.{name}"


def records(files: Path) -> list[dict[str, Any]]:
    return [
        {
            "image": str(path_of(files, number, "image").relative_to(files.parent)),
            "audio": str(path_of(files, number, "flac").relative_to(files.parent)),
            "caption": f'Größe {number}, with "quotes"\nand a line',
            "source": f"somewhere {number}",
        }
        for number in range(ROWS)
    ]


@pytest.fixture
def table(files: Path) -> Path:
    return write_csv(files.parent / "table.csv", records(files))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(source: Any, out: Path, **options: Any) -> Path:
    build(source, out, **{"samples_per_shard": 3, "progress": False, **options})
    return out


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_out(folder: Path) -> dict[str, str]:
    lines = map(json.loads, (folder / "left_out.jsonl").read_text("utf-8").splitlines())
    return {line["key"]: line["code"] for line in lines}


def by_webdataset(folder: Path) -> dict[str, dict[str, bytes]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = list(webdataset.WebDataset([str(p) for p in sorted(folder.glob("*.tar"))], shardshuffle=False))
        gc.collect()
    return {one["__key__"]: {k: v for k, v in one.items() if not k.startswith("_")} for one in found}


def test_a_folder_comes_back_byte_for_byte(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By webdataset's reader and by ours; keys have no dots and slashes; hidden files are none, others are told."""
    (files / ".DS_Store").write_bytes(b"x")
    (files / "cat" / "notes.pdf").write_bytes(b"x")
    out = run(files, tmp_path / "out")
    theirs, ours = by_webdataset(out), Shards(sorted(out.glob("*.tar")))
    expected = {}
    for number in range(ROWS):
        parts = {kind: path_of(files, number, kind).read_bytes() for kind in ("flac", "txt", "json")}
        parts[["png", "jpg", "webp"][number % 3]] = path_of(files, number, "image").read_bytes()
        expected[f"{'cat' if number % 2 else 'dog'}-n_{number}"] = parts
    assert theirs == expected and list(theirs) == sorted(expected)
    assert {ours.key(n): ours[n].parts for n in range(len(ours))} == expected
    assert [entry.samples for entry in shard_list.read_list(out).values()] == [3, 3, 1]
    assert "not read: 1 .pdf\n" in capsys.readouterr().out


def test_every_kind_of_table_gives_the_same_shards(files: Path, table: Path, tmp_path: Path) -> None:
    """CSV, TSV, JSONL, Parquet, a saved dataset, a dataset in memory, and bytes inside of it instead of paths."""
    rows, base = records(files), files.parent
    expected = tars(run(table, tmp_path / "csv"))
    assert len(expected) == 3
    (base / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), base / "t.parquet")
    whole = [{**row, **{kind: str(base / row[kind]) for kind in ("image", "audio")}} for row in rows]
    embedded = [
        {**row, **{k: {"bytes": Path(row[k]).read_bytes(), "path": Path(row[k]).name} for k in ("image", "audio")}}
        for row in whole
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(embedded), base / "bytes.parquet")
    features = datasets.Features(
        image=datasets.Image(),
        audio=datasets.Audio(),
        caption=datasets.Value("string"),
        source=datasets.Value("string"),
    )
    typed = datasets.Dataset.from_list(embedded).cast(features)
    typed.save_to_disk(base / "saved", num_proc=None)
    inputs = {
        "tsv": write_csv(base / "t.tsv", rows),
        "jsonl": base / "t.jsonl",
        "parquet": base / "t.parquet",
        "bytes.parquet": base / "bytes.parquet",
        "saved": str(base / "saved"),
        "of paths": datasets.Dataset.from_list(whole),
        "typed paths": datasets.Dataset.from_list(whole).cast(features),
        "of bytes": typed,
    }
    for name, source in inputs.items():
        assert tars(run(source, tmp_path / f"out {name}")) == expected, name
    sample = by_webdataset(tmp_path / "csv")["000000001"]
    assert sample["jpg"] == path_of(files, 1, "image").read_bytes()
    assert sample["txt"].decode() == rows[1]["caption"] and json.loads(sample["json"]) == {"source": "somewhere 1"}


def test_a_dataset_keeps_what_it_knows(encode_image: Callable[..., bytes], tmp_path: Path) -> None:
    """Classes by name, numbers as numbers, NaN as null, dates as text; an Image column needs no usual name."""
    features = datasets.Features(
        photo=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        score=datasets.Value("float64"),
        day=datasets.Value("date32"),
        tags=datasets.List(datasets.Value("int32")),
    )
    data = encode_image(np.zeros((2, 2, 3), np.uint8), "JPEG")
    row = {"photo": {"bytes": data, "path": "x.png"}, "label": 1, "day": datetime.date(2020, 1, 2), "tags": [1, 2]}
    rows = [{**row, "score": 0.5}, {**row, "score": float("nan"), "label": -1}]
    out = run(datasets.Dataset.from_list(rows, features=features), tmp_path / "out")
    found = by_webdataset(out)
    assert [sample["jpg"] for sample in found.values()] == [data, data], "by its bytes, whatever its name says"
    about = [json.loads(sample["json"]) for sample in found.values()]
    assert about[0] == {"label": "dog", "score": 0.5, "day": "2020-01-02", "tags": [1, 2]}
    assert about[1]["score"] is None and about[1]["label"] is None
    with pytest.raises(UserError, match=r"a DatasetDict is no datasets\.Dataset; give one split"):
        run(datasets.DatasetDict(train=datasets.Dataset.from_list(rows, features=features)), tmp_path / "x")


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """stop(n): the build is interrupted at its n-th sample; stop(0): no longer."""
    check, count = building.check_item, [0, 0]

    def checking(*args: Any) -> None:
        count[0] += 1
        if count[0] == count[1]:
            raise KeyboardInterrupt
        check(*args)

    monkeypatch.setattr(building, "check_item", checking)

    def at(number: int) -> None:
        count[:] = [0, number]

    return at


def test_stopped_and_resumed_is_uninterrupted(
    table: Path, tmp_path: Path, stop: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped at sample after sample: the same files in the end; a finished shard is kept, half of one is gone."""
    expected = everything(run(table, tmp_path / "whole"))
    assert set(expected) == {"build.json", "left_out.jsonl", "shards.json"} | {
        f"shard-{number:06d}.{kind}" for number in range(3) for kind in ("tar", "idx.json")
    }
    out = tmp_path / "out"
    for number in (1, 2, 3, 4, 4):
        stop(number)
        with pytest.raises(KeyboardInterrupt):
            run(table, out)
    kept = {path: path.stat().st_mtime_ns for path in sorted(out.glob("*.tar"))}
    assert [path.name for path in kept] == ["shard-000000.tar", "shard-000001.tar"]
    (out / ".shard-000002.tar.tmp").write_bytes(b"what a kill leaves")
    stop(0)
    run(table, out)
    assert everything(out) == expected and {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "going on: 2 of 3 shards are written\n" in capsys.readouterr().out


def test_a_shard_that_was_damaged_while_it_waited_is_written_again(
    table: Path, tmp_path: Path, stop: Callable[[int], None]
) -> None:
    """By its size, by its index: a finished shard is believed only when it is whole."""
    expected, out = tars(run(table, tmp_path / "whole")), tmp_path / "out"
    stop(7)
    with pytest.raises(KeyboardInterrupt):
        run(table, out)
    assert len(tars(out)) == 2
    (out / "shard-000000.tar").write_bytes(b"cut")
    (out / "shard-000001.idx.json").unlink()
    stop(0)
    assert tars(run(table, out)) == expected


def test_two_processes_write_the_same(files: Path, tmp_path: Path) -> None:
    """All files of the folder are equal, what was left out included, and in its order."""
    path_of(files, 0, "image").write_bytes(b"damaged")
    path_of(files, 5, "flac").write_bytes(b"damaged")
    serial = everything(run(files, tmp_path / "serial"))
    assert everything(run(files, tmp_path / "parallel", workers=2)) == serial
    assert serial["left_out.jsonl"].count(b"\n") == 2


def test_what_cannot_be_decoded_is_left_out_and_listed(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each under its code. Headers alone pass a cut picture and a sound that is cut at its end; "none" passes both."""
    data = path_of(files, 1, "image").read_bytes()
    path_of(files, 1, "image").write_bytes(data[:-30])
    path_of(files, 2, "flac").write_bytes(path_of(files, 2, "flac").read_bytes()[:-40])
    path_of(files, 3, "txt").write_bytes(b"\xff\xfe")
    path_of(files, 4, "json").write_bytes(b"{")
    path_of(files, 5, "image").write_bytes(b"GIF89a")
    path_of(files, 6, "txt").write_bytes(b" \n")
    bad = {
        "dog-n_2": "audio_damaged", "cat-n_3": "text_not_utf8", "dog-n_4": "json_damaged", "cat-n_1": "image_damaged",
        "cat-n_5": "image_format", "dog-n_6": "text_empty",
    }  # fmt: skip
    found = left_out(run(files, tmp_path / "decode"))
    assert {**found, "dog-n_2": found["dog-n_2"].replace("cut", "damaged")} == bad
    assert list(by_webdataset(tmp_path / "decode")) == ["dog-n_0"]
    assert "1 samples in 1 shards, 6 left out (" in capsys.readouterr().out
    lighter = {key: code for key, code in bad.items() if key not in ("cat-n_1", "dog-n_2")}
    assert left_out(run(files, tmp_path / "headers", check="headers")) == lighter
    assert left_out(run(files, tmp_path / "none", check="none")) == {}


def test_missing_files_fail_at_the_end(table: Path, files: Path, tmp_path: Path) -> None:
    """They are named, the rest is written. Once they are there the same command makes it whole; or it goes without."""
    expected = tars(run(table, tmp_path / "whole"))
    hidden = path_of(files, 1, "flac").rename(tmp_path / "hidden")
    words = r"1 of 7 samples lack a file: .*n\.1\.flac; put them there and repeat the command, or .* --allow-missing"
    with pytest.raises(UserError, match=words):
        run(table, tmp_path / "out")
    assert left_out(tmp_path / "out") == {"000000001": "missing_file"} and len(tars(tmp_path / "out")) == 3
    run(table, tmp_path / "without", allow_missing=True)
    assert list(by_webdataset(tmp_path / "without")) == [f"{number:09d}" for number in (0, 2, 3, 4, 5, 6)]
    hidden.rename(path_of(files, 1, "flac"))
    assert tars(run(table, tmp_path / "out")) == expected and left_out(tmp_path / "out") == {}


def test_a_table_that_names_no_plain_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, which would wait for ever, and a folder count as missing; a file too big for an index has its code."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").write_bytes(b"x" * 100)
    monkeypatch.setattr(build_check, "MAX_PART", 99)
    names = ("pipe.png", ".", "large.png", "pipe.png/x", "/dev/null")
    rows = [{"image": name, "text": "x"} for name in names] + [{"image": "", "text": "y"}]
    out = run(write_csv(tmp_path / "t.csv", rows), tmp_path / "out", allow_missing=True)
    missing = dict.fromkeys(f"{number:09d}" for number in (0, 1, 3, 4))
    assert left_out(out) == {**dict.fromkeys(missing, "missing_file"), "000000002": "part_too_big"}
    assert by_webdataset(out) == {"000000005": {"txt": b"y"}}


def test_a_folder_is_kept_or_refused(table: Path, files: Path, tmp_path: Path, stop: Callable[[int], None]) -> None:
    """The same command again does nothing; another input, other options, or a folder of something else are refused."""
    out = run(table, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(table, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    refused = "was begun from another input or with other options; repeat those, or choose another folder"
    for source, options in ((files, {}), (table, {"samples_per_shard": 2}), (table, {"check": "none"})):
        with pytest.raises(UserError, match=refused):
            run(source, out, **options)
    stop(5)
    with pytest.raises(KeyboardInterrupt):
        run(files, tmp_path / "half")
    stop(0)
    path_of(files, 0, "txt").write_text("another text")
    with pytest.raises(UserError, match=refused):
        run(files, tmp_path / "half")
    with pytest.raises(UserError, match="exists and was not written by mmfm data build; choose another folder"):
        run(table, files)
    with pytest.raises(UserError, match=r"lies in .*, which is read; choose a folder outside of it"):
        run(files, files / "cat" / "out")
    (out / "shard-000001.tar").unlink()
    with pytest.raises(
        UserError, match=r"shard-000001\.tar is missing or was changed; choose another folder, or delete"
    ):
        run(table, out)


def test_folders_as_classes(files: Path, tmp_path: Path) -> None:
    """The number of the folder's name in classnames.txt, and its name where there is no caption."""
    path_of(files, 1, "txt").unlink()
    (files / "cat").rename(files / "sea_cat")
    found = by_webdataset(run(files, tmp_path / "out", classes=True))
    names = (tmp_path / "out" / "classnames.txt").read_text().splitlines()
    assert names == ["dog", "sea_cat"]
    assert {key: names[int(parts["cls"])] for key, parts in found.items()} == {k: k.partition("-")[0] for k in found}
    assert found["sea_cat-n_1"]["txt"] == b"sea cat" and found["dog-n_0"]["txt"].decode() == "Größe 0\n"


def test_keys_cannot_lead_elsewhere(tmp_path: Path) -> None:
    """Of any text as a key: no dot, no slash, no control character; two that become one are refused by name."""
    rows = [{"id": key, "text": "x"} for key in ("../../etc/passwd", "a.b.c", "C:\\x", "tab\there", "Größe")]
    run(write_csv(tmp_path / "t.csv", rows), tmp_path / "out", columns=Columns(key="id"), samples_per_shard=9)
    assert list(by_webdataset(tmp_path / "out")) == ["__-__-etc-passwd", "a_b_c", "C:_x", "tab_here", "Größe"]
    assert key_of("a/b.c") == "a-b_c"
    twice = [Item("a/b", {"txt": b"x"}), Item("a-b", {"txt": b"y"})]
    with pytest.raises(UserError, match="two samples have the key 'a-b'; rename one"):
        run(twice, tmp_path / "x")


def test_bytes_in_memory_are_written_as_they_are(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    """Items, as a program makes them; one without anything to learn from is left out."""
    data = encode_image(np.zeros((2, 2, 3), np.uint8))
    items = [
        Item("a", {"png": data, "txt": b"x"}),
        Item("b", {"json": b'{"n": 1}'}),
        Item("c", {"json": b'{"text": "x"}'}),
    ]
    out = run(items, tmp_path / "out")
    assert by_webdataset(out) == {"a": {"png": data, "txt": b"x"}, "c": {"json": b'{"text": "x"}'}}
    assert left_out(out) == {"b": "empty_sample"}


def test_columns_are_guessed_aloud(
    table: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By usual names; "path" is what its files are. What is not chosen goes into the .json."""
    run(table, tmp_path / "out")
    told = (
        "image from the column 'image', audio from the column 'audio', text from the column 'caption'; the key is the"
    )
    assert told in capsys.readouterr().out
    rows = [{"Path": row["audio"], "caption": "x", "image": row["image"]} for row in records(files)]
    run(write_csv(files.parent / "t.csv", rows), tmp_path / "two", columns=Columns(audio="Path"))
    assert set(by_webdataset(tmp_path / "two")["000000000"]) == {"flac", "json"}
    rows = [{"Path": row["audio"], "Title": "x"} for row in records(files)]
    run(write_csv(files.parent / "u.csv", rows), tmp_path / "three")
    assert set(by_webdataset(tmp_path / "three")["000000000"]) == {"flac", "txt"}


def tables() -> Iterator[tuple[str, str, str]]:
    yield (
        "t.csv",
        "a,b\n1,2\n",
        r"has the columns a, b, none with a usual name; say which is --image, --audio or --text",
    )
    yield "t.csv", "", "has no rows; give a table with a header"
    yield "t.csv", "text,n\nx\n", r"line 2 of .*t\.csv has 1 fields, not 2; quote fields"
    yield "t.csv", 'text\n"x\n', r"line 2 of .*t\.csv is no CSV \(.*\); correct its quotes"
    yield "t.csv", "text,text\nx,y\n", r"has two columns called \['text'\]; rename one"
    yield "t.jsonl", '{"text": "x"}\n{\n', r"line 2 of .*t\.jsonl is no JSON; write one object on each line"
    yield "t.jsonl", "[1]\n", r"line 1 of .*t\.jsonl holds no object"
    yield "t.jsonl", '{"image": 5}\n', "the column 'image' holds a int, no path; choose another"
    yield "t.jsonl", "\udcff", "t.jsonl is not UTF-8 .byte 0.; convert it"
    yield "t.parquet", "text", r"t\.parquet is no Parquet file \(.*\); write it again"
    yield "t.xlsx", "text", r"t\.xlsx is of no known kind; give a folder, a \.csv"
    yield "t.csv", "image\nnone.png\n", "none of 1 samples could be read; .*left_out.jsonl says why of each"


@pytest.mark.parametrize(("name", "content", "words"), list(tables()))
def test_mistakes_in_a_table(tmp_path: Path, name: str, content: str, words: str) -> None:
    """One line that names the place and the remedy."""
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_mistakes_in_what_is_asked(table: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that do not fit the input, an input that is not there, a package that is not."""
    (files.parent / "png").mkdir()
    (files.parent / "png" / "a.png").write_bytes(b"")
    (files.parent / "png" / "a.jpg").write_bytes(b"")
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (tmp_path / "none", {}, "there is no .*none'; give a folder, a .csv"),
        (
            table,
            {"columns": Columns(image="photo")},
            r"has no column 'photo' \(--image\); it has image, audio, caption",
        ),
        (table, {"classes": True}, "--classes folders is for a folder of files"),
        (files, {"columns": Columns(text="x")}, "is a folder and has no columns; leave out --image"),
        (files.parent / "png", {}, r"a has both \.jpg and \.png; one image per sample, remove one"),
        (files.parent / "png", {"classes": True}, "both|lies in no folder that could be its class"),
        (table, {"samples_per_shard": 0}, "samples_per_shard=0 must be greater than 0"),
        (table, {"prefix": "../x"}, r"the prefix '\.\./x' must be of letters and digits"),
        ([Item("a", {"png": b"", "webp": b""})], {}, r"a has both \.png and \.webp; one image per sample"),
        (5, {}, r"a int is no datasets\.Dataset"),
    ]
    for source, options, words in wrong:
        with pytest.raises(UserError, match=words):
            run(source, tmp_path / "out", **options)
    monkeypatch.delitem(sys.modules, "mmfm.datasets.build_hf", raising=False)
    monkeypatch.delattr("mmfm.datasets.build_hf", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"the package datasets is not installed; install it with: pip install 'mmfm\[data\]'"
    ):
        run(5, tmp_path / "out")


def test_the_command(table: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 for a missing file, 0 without it; the shards are those of the function."""
    line = ["data", "build", str(table), str(tmp_path / "out"), "--samples-per-shard", "3", "--workers", "1"]
    expected = tars(run(table, tmp_path / "whole"))
    hidden = path_of(files, 1, "flac").rename(tmp_path / "hidden")
    assert main(line) == 2 and "1 of 7 samples lack a file" in capsys.readouterr().err
    hidden.rename(path_of(files, 1, "flac"))
    assert main(line) == 0 and tars(tmp_path / "out") == expected


def test_one_build_at_a_time(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one into the same folder is refused while another process builds there."""
    monkeypatch.setattr(building.ShardFolder, "complete", lambda folder: False)
    (out := tmp_path / "out").mkdir()
    with python(LOCK.replace("argv[1])", "argv[1]), 'built', 'stop it', '.build'"), str(out)) as child:
        assert child.stdout and child.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"out is being written by mmfm data build by process {child.pid}"):
            run(table, out)
        child.kill()
