"""A folder that is replaced is never lost: whatever fails, at whatever step, the old one or the new one is whole."""

import os
from pathlib import Path

import pytest

from mmfm.config import UserError
from mmfm.data.output_folder import whole
from mmfm.export.folder import ABOUT, export_folder
from mmfm.runtime import folders
from mmfm.runtime.folders import whole_folder


def names(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, word: str) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "a.txt").write_text(word)
    (folder / ABOUT).write_text("{}")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    with whole_folder(tmp_path / "out") as folder:
        assert not (tmp_path / "out").exists()
        fill(folder, "old")
    return tmp_path / "out"


OLD, NEW = ({f"out/{ABOUT}": "{}", "out/part/a.txt": word} for word in ("old", "new"))


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("why", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_one(out, step, why, monkeypatch):
    """While it is filled, at the first rename, at the second, and when the disk is asked: nothing else stays."""
    calls = {"replace": 0}
    replace = os.replace

    def failing(*places) -> None:
        calls["replace"] += 1
        if calls["replace"] == step < 3:
            raise why
        replace(*places)

    def sync(_: Path) -> None:
        if step == 3:
            raise why

    monkeypatch.setattr(folders.os, "replace", failing)
    monkeypatch.setattr(folders, "sync_folder", sync)
    with pytest.raises(type(why)), whole_folder(out) as folder:
        fill(folder, "new")
        if step == 0:
            raise why
    assert names(out.parent) == OLD
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_new_one_takes_its_place(out):
    with whole_folder(out) as folder:
        fill(folder, "new")
        assert names(out)["part/a.txt"] == "old"
    assert names(out.parent) == NEW


def test_one_that_died_between_the_renames_is_brought_back(out):
    """The old one lies beside under another name: the next call finds it, even where it fails itself."""
    os.replace(out, out.with_name(".out.99.old"))
    with pytest.raises(ZeroDivisionError), whole_folder(out):
        raise ZeroDivisionError
    assert names(out.parent) == OLD


def test_a_link_stays_a_link(out, tmp_path):
    """What it leads to is replaced, and the link leads to the new one."""
    link = tmp_path / "link"
    link.symlink_to(out)
    with export_folder(link, force=True) as folder:
        fill(folder, "new")
    assert link.is_symlink() and names(out.parent) == NEW


@pytest.mark.parametrize("opened", [whole, lambda out: export_folder(out, force=True)])
def test_those_who_use_it_lose_nothing(opened, out, monkeypatch):
    """Data sets, judges and exports, where the new one cannot get its name."""
    monkeypatch.setattr(folders, "sync_folder", lambda _: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(UserError, match="Read-only file system"), opened(out) as folder:
        fill(folder, "new")
    assert names(out.parent) == OLD
