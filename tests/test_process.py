"""Signals are remembered and no more; children go with their parents."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmfm.runtime.process import ASKS, Signals

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
