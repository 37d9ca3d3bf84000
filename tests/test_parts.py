"""Shards as other people write them: named fields, two pictures of a sample, frames, empty tars, odd folders."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmfm.__main__ import main
from mmfm.config import RemoteCache, UserError
from mmfm.data import index, shard_list
from mmfm.data.member_names import How
from mmfm.data.remote_cache import ShardCache as Fetched
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.data.sources import open_shards
from mmfm.data.splits import is_remote
from mmfm.datasets.indexing import index_folder
from mmfm.doctor.shard_integrity import Set, look


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    found = Shards(expand(str(folder)))
    return {found.key(n): found[n].parts for n in range(len(found))}


def test_named_fields_are_read_where_nothing_else_is(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    """One picture and one text under names of their own; a plain one comes first; a named .json is never guessed."""
    samples = {
        "a": {"input.jpg": b"1", "caption.txt": b"2", "meta.json": b"{"},
        "b": {"jpg": b"3", "seg.png": b"4", "txt": b"5", "other.txt": b"6"},
        "c": {"x.png": b"7", "y.png": b"8", "txt": b"9"},
    }
    write_shard(tmp_path / "s" / "t.tar", samples)
    expected = {"a": {"jpg": b"1", "txt": b"2"}, "b": {"jpg": b"3", "txt": b"5"}, "c": {"txt": b"9"}}
    scanned = Shards(expand(str(tmp_path / "s")))
    assert read(tmp_path / "s") == expected
    index_folder(tmp_path / "s", progress=False)
    indexed = Shards(expand(str(tmp_path / "s")))
    assert read(tmp_path / "s") == expected
    for found in (scanned, indexed):
        assert found.held == {"image": 2, "text": 3, "audio": 0} and found.modalities(0) == {"image", "text"}
        assert found.ignored == {"meta.json": 1, "seg.png": 1, "other.txt": 1, "x.png": 1, "y.png": 1}


def test_of_several_parts_one_is_named(tmp_path: Path, write_shard: Callable[..., Path], capsys: Any) -> None:
    """Two pictures of a sample are refused with a command that works; what was said then is kept for later indexes."""
    root = tmp_path / "the [shards], a"
    tar = write_shard(root / "t.tar", {f"{n}": {"jpg": b"1", "png": b"2", "txt": b"x"} for n in range(3)})
    words = r"t\.tar: 0 has both \.jpg and \.png, of which one is read; say which, such as with: (mmfm .*)$"
    with pytest.raises(UserError, match=words) as caught:
        Shards([tar])
    assert main(["data", "index", str(root), "--workers", "1"]) == 2 and "has both" in capsys.readouterr().err
    assert str(caught.value).endswith(f"mmfm data index '{root}' --parts jpg")
    assert main(["data", "index", str(root), "--parts", "png", "--workers", "1"]) == 0
    assert {key: parts["png"] for key, parts in read(root).items()} == {"0": b"2", "1": b"2", "2": b"2"}
    assert Shards([tar]).ignored == {"jpg": 3}
    os.utime(tar, (2e9, 2e9))
    index_folder(root, progress=False)
    assert json.loads((root / "t.idx.json").read_text())["read"] == {"parts": ["png"], "last_dot": False}
    assert main(["data", "index", str(root), "--parts", "x.bmp"]) == 2 and "of no kind that" in capsys.readouterr().err
    write_shard(tmp_path / "fields" / "t.tar", {"a": {"x.png": b"7", "y.png": b"8", "m.json": b"{}"}})
    with pytest.raises(UserError, match=r"has no sample with a part that is read .*, but \.\w\.\w+ .*--parts"):
        Shards(expand(str(tmp_path / "fields")))
    index_folder(tmp_path / "fields", how=How(parts=("y.png", "m.json")), progress=False)
    assert read(tmp_path / "fields") == {"a": {"png": b"8", "json": b"{}"}}


def test_frames_are_told_from_documents(tmp_path: Path, write_shard: Callable[..., Path], capsys: Any) -> None:
    """22.0.png and 22.1.png are parts of one document, which is said; or samples of their own, if that is asked."""
    write_shard(tmp_path / "t.tar", {"22": {f"{n}.png": b"%d" % n for n in range(5)}, "v.7": {"txt": b"x"}})
    frames = Set(split="train", label="frames", spec=str(tmp_path))
    _, whole = look([frames], Fetched(RemoteCache()), sums=False, fetch=False)
    (note,) = [item for item in whole.findings if item.code == "documents"]
    assert note.count == 2 and "--last-dot" in note.message and note.examples == (f"{tmp_path / 't.tar'}: 22",)
    index_folder(tmp_path, progress=False)
    told = capsys.readouterr().out
    assert "2 samples are documents of counted parts, such as '22' of t.tar" in told
    assert f"mmfm data index --again --last-dot {tmp_path}" in told and len(read(tmp_path)["22"]) == 5
    assert main(["data", "index", "--again", "--last-dot", str(tmp_path), "--workers", "1"]) == 0
    assert read(tmp_path) == {**{f"22.{n}": {"png": b"%d" % n} for n in range(5)}, "v.7": {"txt": b"x"}}
    assert "documents" not in capsys.readouterr().out


def test_an_empty_tar_blocks_nothing(tmp_path: Path, write_shard: Callable[..., Path], capsys: Any) -> None:
    """As img2dataset writes where every download failed: no sample, told by the index; all of them empty is refused."""
    write_shard(tmp_path / "b.tar", {f"{n}": {"txt": b"%d" % n} for n in range(3)})
    for name in ("a", "c", "d"):
        with tarfile.open(tmp_path / f"{name}.tar", "w"):
            pass
    for _ in range(2):
        found = Shards(expand(str(tmp_path)))
        assert found.counts() == [0, 3, 0, 0] and [found.key(n) for n in range(3)] == ["0", "1", "2"]
        index_folder(tmp_path, progress=False)
    assert "without any sample: a.tar, c.tar, d.tar" in capsys.readouterr().out
    assert [entry.samples for entry in shard_list.read_list(tmp_path).values()] == [0, 3, 0, 0]
    with pytest.raises(UserError, match=r"the 2 tars of .*hold no sample; write or fetch them again"):
        open_shards([f"{tmp_path}/{{a,c}}.tar"], RemoteCache())


@pytest.mark.parametrize("name", ["a [1]", "x,y", "b {1,2}", "c {0..3}, d", "e*f?", "g;h & 'i'", "http:z"])
def test_a_folder_of_any_name(tmp_path: Path, write_shard: Callable[..., Path], name: str) -> None:
    """Itself, its tars, patterns in it, and all of them in a list: what is there under just this name is meant."""
    folder = tmp_path / name
    for number in range(3):
        write_shard(folder / f"t {number}.tar", {"k": {"txt": b"x"}})
    write_shard(folder / "u[0],v.tar", {"k": {"txt": b"x"}})
    every = [f"t {number}.tar" for number in range(3)]
    for spec, expected in (
        (f"{folder}", [*every, "u[0],v.tar"]),
        (f"{folder}/u[0],v.tar", ["u[0],v.tar"]),
        (f"{folder}/t*.tar", every),
        (f"{folder}/t {{1..2}}.tar", every[1:]),
        (f"{folder}/u[0],v.tar, {folder}/t {{2,0}}.tar", ["u[0],v.tar", every[2], every[0]]),
    ):
        assert [path.name for path in expand(spec)] == expected, spec
        assert all(path.parent == folder for path in expand(spec))
    assert not is_remote(f"{folder}") and is_remote("http://x.org/t.tar")


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, cache: Path, write_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its indexes lie in the user's cache, found by place, size and time; no list; once it can be written, beside."""
    tar = write_shard(tmp_path / "s" / "t.tar", {f"{n}": {"txt": b"x"} for n in range(3)})
    replace = os.replace

    def guarded(source: Any, target: Any) -> None:
        if Path(target).parent == tmp_path / "s":
            raise PermissionError(13, "Permission denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", guarded)
    index_folder(tmp_path / "s", progress=False)
    told = capsys.readouterr().out
    assert f"{tmp_path / 's'} cannot be written: its indexes are in {cache}/mmfm/indexes, without a list" in told
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["t.tar"] and index.aside(tar).is_file()
    scans: list[Path] = []
    real = index.scan
    monkeypatch.setattr(index, "scan", lambda path, **more: scans.append(path) or real(path, **more))
    assert len(read(tmp_path / "s")) == 3 and not scans
    index_folder(tmp_path / "s", progress=False)
    assert not scans, "it is valid"
    tar.unlink()
    write_shard(tar, {f"{n}": {"txt": b"y" * 999} for n in range(5)})
    assert len(read(tmp_path / "s")) == 5 and scans, "another tar has no index there"
    monkeypatch.setattr(os, "replace", replace)
    index_folder(tmp_path / "s", again=True, progress=False)
    assert index.index_path(tar).is_file() and not index.aside(tar).exists()


def test_a_stale_index_is_mended_by_the_command_that_is_told(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    """Another tar of the same size and an older time, as rsync copies it: the words' command, given as it stands."""
    root = tmp_path / "my shards"
    tar = write_shard(root / "t.tar", {"a": {"txt": b"1"}})
    index_folder(root, progress=False)
    write_shard(tar, {"b": {"txt": b"2"}})
    os.utime(tar, (1e9, 1e9))
    with pytest.raises(UserError, match="is not the tar that was indexed") as caught:
        Shards(expand(str(root)))[0]
    command = str(caught.value).partition("make it again with: ")[2]
    assert command == f"mmfm data index --again '{root}'"
    assert main(["data", "index", "--again", str(root), "--workers", "1"]) == 0
    assert read(root) == {"b": {"txt": b"2"}}
    (root / "t.idx.json").unlink()
    assert read(root) == {"b": {"txt": b"2"}}, "a list alone: the tar is looked through"
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(UserError, match="1 of 1 tars cannot be indexed"):
        index_folder(root, again=True, progress=False)
    assert not (root / shard_list.LIST).exists()


def test_linked_folders_are_indexed(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    """As they are read: below a link to a folder, but not around and around."""
    write_shard(tmp_path / "elsewhere" / "t.tar", {"a": {"txt": b"1"}})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "around").symlink_to(tmp_path / "root")
    index_folder(tmp_path / "root", progress=False)
    assert (tmp_path / "elsewhere" / "t.idx.json").is_file() and (tmp_path / "elsewhere" / shard_list.LIST).is_file()
