"""What is replaced is never lost, at whatever step it fails; a folder has one owner; a manifest knows its files."""

import os
from pathlib import Path

import pytest
from test_process import python

from mmfm.config import UserError
from mmfm.export.folder import ABOUT, export_folder
from mmfm.runtime import files
from mmfm.runtime.files import Manifest, locked, manifest, output_folder, replace_files, whole_folder


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

    monkeypatch.setattr(files.os, "replace", failing)
    monkeypatch.setattr(files, "sync_folder", sync)
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


def test_an_output_folder_names_the_place_that_was_asked_for(out, monkeypatch):
    """Also in words about what lay in the temporary one, which is gone; what was there stays."""
    with pytest.raises(UserError, match=rf"^{out}/a\.tar is cut$"), output_folder(out, ".partial") as folder:
        raise UserError(f"{folder / 'a.tar'} is cut")
    monkeypatch.setattr(files, "sync_folder", lambda _: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(UserError, match="Read-only file system"), output_folder(out) as folder:
        fill(folder, "new")
    assert names(out.parent) == OLD


def test_several_files_are_replaced_together(tmp_path, monkeypatch):
    """Where one of them does not fit, none has changed."""
    a, b = tmp_path / "a", tmp_path / "b"
    replace_files({a: "old \udc80", b: b"old"})
    write, full = files.write_file, OSError(28, "No space left on device")

    def filling(path: Path, data: bytes) -> None:
        if path.name.startswith(".b"):
            raise full
        write(path, data)

    monkeypatch.setattr(files, "write_file", filling)
    with pytest.raises(OSError, match="No space"):
        replace_files({a: b"new", b: b"new"})
    assert (a.read_bytes(), b.read_bytes()) == (b"old \x80", b"old") and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("broken", ["cut", "changed", "gone", "above", "lacking"])
def test_a_manifest_knows_its_files(broken, tmp_path):
    """A file that is cut, changed or gone is named; a name that leads out of the folder is refused."""
    data = {"x": b"abc", "y": b"defg"} if broken != "above" else {"../x": b"abc", "y": b"defg"}
    for name, part in data.items():
        (tmp_path / Path(name).name).write_bytes(part)
    place = tmp_path / "manifest.json"
    place.write_bytes(manifest(data, step=1))
    if broken in ("cut", "changed", "gone"):
        assert Manifest(place, "thing", "again").read("y") == b"defg"
        Manifest(place, "thing", "again").verify()
    match broken:
        case "cut":
            (tmp_path / "y").write_bytes(b"def")
        case "changed":
            (tmp_path / "y").write_bytes(b"defh")
        case "gone":
            (tmp_path / "y").unlink()
    for act in (lambda listed: listed.read("y"), lambda listed: listed.verify()):
        with pytest.raises(UserError, match="; again"):
            act(Manifest(place, "thing", "again", required=("z",) * (broken == "lacking")))


LOCK = (
    "import sys; from pathlib import Path; from mmfm.runtime.files import locked\n"
    "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
)


def test_a_folder_is_locked_until_its_holder_dies(tmp_path):
    """One line names the process that has it; after SIGKILL nothing need be removed."""
    with python(LOCK, str(tmp_path)) as child:
        assert child.stdout and child.stdout.readline() == "locked\n"
        held = rf"is being trained by process {child.pid} on .*; wait for it, stop it"
        with pytest.raises(UserError, match=held), locked(tmp_path):
            pass
        child.kill()
        child.wait()
        with locked(tmp_path):
            assert (tmp_path / ".lock").is_file()


def test_children_do_not_inherit_the_lock(tmp_path):
    """A loader process that outlives its parent by a moment does not keep the next start out."""
    code = LOCK.replace("print('locked', flush=True); sys.stdin.read()", "pass").replace(
        "with locked",
        "import os\nheld = locked(Path(sys.argv[1])); held.__enter__()\n"
        "child = os.fork()\nif not child: sys.stdin.read(); os._exit(0)\n"
        "print(child, flush=True); os._exit(0)\nwith locked",
    )
    with python(code, str(tmp_path)) as parent:
        assert parent.stdout and int(parent.stdout.readline()) > 0
        parent.wait()  # its child still waits for its input to end
        with locked(tmp_path):
            pass


def test_a_folder_made_for_the_lock_alone_goes_with_it(tmp_path):
    with locked(tmp_path / "a"):
        pass
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "b"):
        (tmp_path / "b" / "x").touch()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [".lock", "x"]
