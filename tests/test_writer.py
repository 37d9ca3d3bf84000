"""Shards as they are written and indexed: equal to another writer's, whole or not there."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from webdataset.writer import TarWriter

from mmfm.__main__ import main
from mmfm.config import UserError
from mmfm.data import index, shard_list
from mmfm.data.process_pool import in_order
from mmfm.data.tar import members
from mmfm.data.writer import Item, ShardWriter, as_json, write_shard
from mmfm.datasets.indexing import index_folder

ITEMS = [Item(f"{'long' * 40 * (n % 2)}clé-{n:03d}", {"json": b"{}", "txt": b"x" * n}) for n in (1, 511, 512, 513)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_same_bytes_as_webdataset_writes(tmp_path: Path) -> None:
    """Names that fit a header and names that do not, bodies around a block's size: equal to its TarWriter's archive."""
    theirs = io.BytesIO()
    with TarWriter(theirs, mtime=0, user="", group="") as tar:
        for key, parts in ITEMS:
            tar.write({"__key__": key, **parts})
    assert write_shard(tmp_path / "ours.tar", ITEMS) == len(ITEMS)
    assert (tmp_path / "ours.tar").read_bytes() == theirs.getvalue()


def test_what_is_written_is_indexed_and_whole(tmp_path: Path) -> None:
    """The index gives back every part; nothing but the shard and its index stays."""
    write_shard(tmp_path / "a.tar", ITEMS)
    found, data = index.load(tmp_path / "a.tar", (tmp_path / "a.tar").stat().st_size), (tmp_path / "a.tar").read_bytes()
    assert found.keys == [item.key for item in ITEMS]
    for number, item in enumerate(ITEMS):
        at, size = found.offset["txt"][number], found.size["txt"][number]
        assert data[at : at + size] == item.parts["txt"]
    assert names(tmp_path) == ["a.idx.json", "a.tar"]


def test_a_new_shard_by_samples_and_by_bytes(tmp_path: Path) -> None:
    """Whichever limit comes first; a sample that alone exceeds the bytes still has its shard, of its own."""
    sizes = [10, 10, 10, 9_000, 3_000, 10]
    with ShardWriter(tmp_path, "s", samples=3, bytes=8_192) as writer:
        for number, size in enumerate(sizes):
            writer.write(f"k{number}", {"txt": b"x" * size})
    counts = [len(list(members(path))) for path in writer.paths]
    assert counts == [3, 1, 2] and [path.name for path in writer.paths] == [f"s-{n:06d}.tar" for n in range(3)]
    with ShardWriter(
        tmp_path, "t", bytes=4_096
    ) as writer:  # two samples of 1024 and the end mark fit, a third does not
        for number in range(4):
            writer.write(f"k{number}", {"txt": b"x" * 600, "json": b"{}"})
    assert [len(list(members(path))) for path in writer.paths] == [2, 2, 2, 2]


def test_an_error_leaves_no_half_shard(tmp_path: Path) -> None:
    """Shards before it stay whole; the one at work has neither its name nor a rest."""

    def failing() -> Iterator[Item]:
        yield ITEMS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", failing())
    assert names(tmp_path) == []
    with pytest.raises(UserError, match="the key 'k0' comes twice"), ShardWriter(tmp_path, "s", samples=1) as writer:
        for key in ("k0", "k1", "k0"):
            writer.write(key, {"txt": b"x"})
    assert names(tmp_path) == ["s-000000.idx.json", "s-000000.tar"]


@pytest.mark.parametrize(
    ("key", "parts", "words"),
    [
        ("a.b", {"txt": b""}, "the key 'a.b' has a dot, a slash or a control character"),
        ("../a", {"txt": b""}, "has a dot, a slash"),
        ("a/b", {"txt": b""}, "has a dot, a slash"),
        ("a\n", {"txt": b""}, "or a control character"),
        ("", {"txt": b""}, "the key '' has"),
        ("a", {"TXT": b""}, "a: the extension 'TXT' is not of a-z and 0-9 alone"),
        ("a", {"t/x": b""}, "the extension 't/x'"),
        ("a", {}, "a: the sample has no parts"),
    ],
)
def test_names_that_tools_read_differently_are_refused(
    tmp_path: Path, key: str, parts: dict[str, bytes], words: str
) -> None:
    """Named in one line, and nothing is written."""
    with pytest.raises(UserError, match=words):
        write_shard(tmp_path / "a.tar", [Item(key, parts)])
    assert names(tmp_path) == []


def test_json_of_any_text() -> None:
    """UTF-8 as it is; a lone surrogate, which UTF-8 cannot hold, is escaped rather than lost."""
    assert as_json({"é": "鳥"}) == '{"é": "鳥"}'.encode()
    assert as_json({"a": "\ud800"}) == b'{"a": "\\ud800"}'


# mmfm data index


@pytest.fixture
def shards(tmp_path: Path, write_shard: Callable[..., Path]) -> Path:
    for place in ("one/a", "one/b", "two/c"):
        write_shard(tmp_path / f"{place}.tar", {f"{place[-1]}{n}": {"txt": b"text"} for n in range(3)})
    return tmp_path


def test_what_lacks_an_index_gets_one(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it is another tar's or older than the tar; a valid one is not touched; each folder has a list."""
    index.write(shards / "one" / "a.tar")
    kept = (shards / "one" / "a.idx.json").stat().st_mtime_ns
    (shards / "one" / "b.idx.json").write_bytes((shards / "one" / "a.idx.json").read_bytes())
    index_folder(shards, workers=1, progress=False)
    assert capsys.readouterr().out == f"{shards}: 3 tars, 2 indexed now (6 samples)\n"
    assert (shards / "one" / "a.idx.json").stat().st_mtime_ns == kept
    assert list(shard_list.read_list(shards / "one")) == ["a.tar", "b.tar"] and list(
        shard_list.read_list(shards / "two")
    ) == ["c.tar"]
    os.utime(shards / "one" / "a.tar", ns=(kept + 10, kept + 10))
    index_folder(shards, workers=1, progress=False)
    assert "3 tars, 1 indexed now (3 samples)" in capsys.readouterr().out


def test_damaged_tars_are_named_after_the_others_are_done(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and the byte; no index and no list claims that the damaged one is whole. With two processes."""
    data = (shards / "one" / "b.tar").read_bytes()
    (shards / "one" / "b.tar").write_bytes(data[:700])
    assert main(["data", "index", str(shards), "--workers", "2"]) == 2
    # a busy machine is told how far it is, too
    (told,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("index: ")]
    assert f"1 of 3 tars cannot be indexed: {shards / 'one' / 'b.tar'} is cut at byte" in told
    assert names(shards / "one") == ["a.idx.json", "a.tar", "b.tar"]
    assert names(shards / "two") == ["c.idx.json", "c.tar", "shards.json"]
    (shards / "one" / "b.tar").write_bytes(data)
    assert main(["data", "index", str(shards)]) == 0
    assert names(shards / "one") == ["a.idx.json", "a.tar", "b.idx.json", "b.tar", "shards.json"]


def test_a_folder_without_tars(tmp_path: Path) -> None:
    """Nothing to do is a mistake in the path."""
    with pytest.raises(UserError, match=r"there is no \.tar below .*; give a folder of shards"):
        index_folder(tmp_path, progress=False)


# Several processes


def test_results_come_in_order() -> None:
    """More jobs than are handed out at once; an error of a job arrives as itself, after what was before it."""
    assert list(in_order(abs, range(-9, 0), 2)) == list(range(9, 0, -1))
    results = in_order(int, ["1", "x", "3"], 2)
    assert next(results) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        next(results)


SCRIPT = """
import os, signal, sys
from mmfm.data.process_pool import in_order

def work(job):
    print("worker", flush=True)
    signal.pause()

if __name__ == "__main__":
    list(in_order(work, range(2), 2))
"""


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    """kill -9 of the parent: the pipe that its workers also hold closes, so they are gone."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert [parent.stdout.readline() for _ in range(2)] == [b"worker\n"] * 2
        parent.kill()
        assert parent.communicate(timeout=30) == (b"", None)
