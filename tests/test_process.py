"""Signals are remembered and no more, a folder has one owner, children go with their parents."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmfm.config import UserError
from mmfm.runtime.process import ASKS, Signals, locked

HERE = Path(__file__).parent.parent


def python(code: str, *words: str) -> subprocess.Popen[str]:
    """Another process, that can be talked to."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)


@pytest.mark.parametrize("name", ASKS)
def test_a_signal_is_remembered_and_handlers_come_back(name):
    before = signal.getsignal(name)
    with Signals() as signals:
        assert not signals.asked
        signal.raise_signal(name)
        assert signals.asked == {name}
    assert signal.getsignal(name) is before


def test_one_request_may_arrive_twice_but_a_second_one_ends_at_once():
    """`timeout` signals the process and then its group: within a second that is one request. Later it is another."""
    now = [100.0]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever ran in this process before
    with pytest.raises(KeyboardInterrupt), Signals(clock=lambda: now[0]) as signals:
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.9
        signal.raise_signal(signal.SIGINT)
        assert signals.asked == {signal.SIGTERM, signal.SIGINT}
        now[0] += 0.2
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("should have been interrupted")


def test_a_second_sigterm_ends_the_process():
    code = (
        "import signal; from mmfm.runtime.process import Signals; times = iter([0.0, 2.0])\n"
        "with Signals(clock=lambda: next(times)):\n"
        "    signal.raise_signal(signal.SIGTERM); print('lives', flush=True); signal.raise_signal(signal.SIGTERM)\n"
        "    print('should not')"
    )
    with python(code) as child:
        assert child.communicate()[0] == "lives\n" and child.returncode == -signal.SIGTERM


LOCK = (
    "import sys; from pathlib import Path; from mmfm.runtime.process import locked\n"
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


ORPHAN = (
    "import os, signal, sys; from mmfm.runtime.process import die_with_parent\n"
    "if not os.fork(): die_with_parent({parent}); print('bound', flush=True); signal.pause()\n"
    "sys.stdin.readline()"
)


def test_a_child_dies_with_its_parent():
    """It would wait for ever and hold its output open, but that comes to an end."""
    with python(ORPHAN.format(parent="os.getppid()")) as process:
        assert process.stdout and process.stdout.readline() == "bound\n"
        process.kill()
        assert process.communicate(timeout=20)[0] == ""


def test_a_child_whose_parent_died_before_it_was_bound_dies_too():
    with python(ORPHAN.format(parent="os.getppid() + 1")) as process:
        assert process.communicate("\n", timeout=20)[0] == ""
