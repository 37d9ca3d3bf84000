"""What takes minutes says so where there is no terminal; what a message names is there."""

import threading
from pathlib import Path

import pytest

from mmfm.config import UserError
from mmfm.data import output_folder as folders
from mmfm.data.output_folder import Pace, ticker, whole


def test_a_line_says_how_far_a_work_is() -> None:
    now = [5.0]
    pace = Pace("out", 400, "samples", lambda: now[0])
    now[0] += 10
    assert pace.line() == "out: 0 of 400 samples in 10 s (0.0/s)", "nothing is done, and that is said too"
    pace.tick("a.tar", 100)
    assert pace.line() == "out: 100 of 400 samples in 10 s (10.0/s, 30 s left): a.tar"


def test_lines_come_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing is finished, on stderr, until the end; and none where progress is not wanted."""
    told, said = list[str](), threading.Event()

    def write(text: str) -> int:
        told.append(text)
        said.set()
        return len(text)

    monkeypatch.setattr(folders, "EVERY_S", 0.001)
    monkeypatch.setattr("sys.stderr.write", write)
    with ticker("out", 4, True) as tick:
        assert said.wait(60), "before the first is done"
        tick("x")
    assert told[0].startswith("out: 0 of 4 samples")
    told.clear()
    with ticker("out", 4, False) as tick:
        tick("x")
    assert not told and not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_no_message_names_a_folder_that_is_gone(tmp_path: Path) -> None:
    """What is made beside its place is removed after an error: the words name the place that was asked for."""
    with pytest.raises(UserError, match=f"^{tmp_path}/set/a.tar is cut$"), whole(tmp_path / "set") as partial:
        raise UserError(f"{partial / 'a.tar'} is cut")
    assert not list(tmp_path.iterdir())
