"""What takes minutes says so where there is no terminal."""

import threading

import pytest

from mmfm.data import progress as folders
from mmfm.data.progress import Pace, ticker, watched


def test_a_line_says_how_far_a_work_is() -> None:
    now = [5.0]
    pace = Pace("out", 400, "samples", lambda: now[0])
    now[0] += 10
    assert pace.line() == "out: 0 of 400 samples in 10 s (0.0/s)", "nothing is done, and that is said too"
    pace.tick("a.tar", 100)
    assert pace.line() == "out: 100 of 400 samples in 10 s (10.0/s, 30 s left): a.tar"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], threading.Event]:
    """What is written to stderr, where a line is due at once; and whether something was."""
    told, said = list[str](), threading.Event()

    def write(text: str) -> int:
        told.append(text)
        said.set()
        return len(text)

    monkeypatch.setattr(folders, "EVERY_S", 0.001)
    monkeypatch.setattr("sys.stderr.write", write)
    return told, said


def test_lines_come_without_a_terminal(lines: tuple[list[str], threading.Event]) -> None:
    """Also while nothing is finished, on stderr, until the end; and none where progress is not wanted."""
    told, said = lines
    with ticker("out", 4, True) as tick:
        assert said.wait(60), "before the first is done"
        tick("x")
    assert told[0].startswith("out: 0 of 4 samples")
    told.clear()
    with ticker("out", 4, False) as tick:
        tick("x")
    assert not told and not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_pieces_of_a_work_are_told_as_they_go(lines: tuple[list[str], threading.Event]) -> None:
    """As they are, in their order; while each is at work a line may come, and none where it is not wanted."""
    told, said = lines
    assert [(one, said.wait(60)) for one in watched("scenes", True, "batches")([3, 1])] == [(3, True), (1, True)]
    assert told[0].startswith("scenes: 0 of 2 batches")
    told.clear()
    assert [*watched("scenes", False)([3, 1])] == [3, 1] and not told
