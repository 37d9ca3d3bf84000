"""Strange programs: each tries what it should not be able to do, and what it did is looked at from outside."""

import os
import select
import socket
import sys

import pytest

from mmfm.config import UserError
from mmfm.runtime import limited
from mmfm.runtime.limited import Outcome, run_limited

PYTHON = [sys.executable, "-I", "-S", "-B", "-"]


def run(code: str, **options) -> Outcome:
    return run_limited(PYTHON, stdin=code.encode(), **{"seconds": 5, "memory_mb": 200, **options})


def test_a_harmless_program_ends_by_itself():
    assert run("import sys; print(sum(range(10))); sys.exit(3)") == Outcome(3, b"45\n", b"", "")


def test_threads_and_other_modules_work():
    code = "import threading, decimal, json; t = threading.Thread(target=print, args=(7,)); t.start(); t.join()"
    assert run(code) == Outcome(0, b"7\n", b"", "")


def test_it_sees_nothing_of_its_starter(monkeypatch):
    """Neither the environment, where tokens stand, nor the folder."""
    monkeypatch.setenv("TOKEN_OF_SOMETHING", "secret")
    done = run("import os; print(sorted(os.environ), os.listdir())")
    assert b"TOKEN_OF_SOMETHING" not in done.stdout and done.stdout.endswith(b"[]\n")


@pytest.mark.parametrize("code", ["while True: pass", "import signal\nsignal.signal(24, 1)\nwhile True: pass"])
def test_an_endless_loop(code):
    """The second one ignores SIGXCPU; the kernel then has SIGKILL a second later."""
    done = run(code, seconds=1)
    assert done.code < 0 and done.reason in ("cpu seconds", "SIGKILL")


def test_a_program_that_waits():
    assert run("print(1, flush=True); import time; time.sleep(3600)", wall_seconds=0.5)[1:] == (
        b"1\n",
        b"",
        "wall seconds",
    )


def test_memory():
    assert run("x = bytearray(1 << 30)").reason == "memory"
    assert run("x = bytearray(1 << 30)", memory_mb=2_000).code == 0


def test_megabytes_of_output():
    done = run("while True: print('x' * 1000)", output_bytes=1 << 16)
    assert done.reason == "output" and len(done.stdout) == 1 << 16


@pytest.mark.parametrize("code", [
    "import os; os.fork()",
    "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "import subprocess; subprocess.run(['true'])",
    "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start()",
])  # fmt: skip
def test_no_other_process(code):
    done = run(code)
    assert done.code == 1 and b"PermissionError" in done.stderr


def test_a_fork_bomb_starts_nothing():
    """It goes on after each refusal, until its time is over."""
    code = "import os\nwhile True:\n  try: os.fork(); print('forked', flush=True)\n  except PermissionError: pass"
    assert run(code, seconds=1)[1:] == (b"", b"", "cpu seconds")


def test_nothing_is_written_changed_or_removed(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("before")
    tries = [
        f"open({str(tmp_path / 'new')!r}, 'w')", f"open({str(kept)!r}, 'a')", "open('here', 'w')", "os.mkdir('x')",
        f"os.open({str(kept)!r}, os.O_RDONLY | os.O_TRUNC)", f"os.remove({str(kept)!r})",
        f"os.rename({str(kept)!r}, {str(tmp_path / 'moved')!r})", f"os.chmod({str(kept)!r}, 0)",
        f"os.truncate({str(kept)!r}, 0)", f"os.symlink('x', {str(tmp_path / 'link')!r})", "os.memfd_create('x')",
        f"os.utime({str(kept)!r})",
    ]  # fmt: skip
    for code in tries:
        assert b"PermissionError" in run(f"import os; {code}").stderr, code
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and kept.read_text() == "before"
    assert run(f"print(open({str(kept)!r}).read())").stdout == b"before\n"  # reading is allowed


def test_no_socket_unless_asked():
    """A listener that is really there hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert b"PermissionError" in run(code).stderr
        with pytest.raises(BlockingIOError):
            server.accept()
        assert run(code, network=True).code == 0
        server.accept()[0].close()


def test_it_signals_itself_alone():
    assert run("import os; os.kill(os.getpid(), 9)").reason == "SIGKILL"
    assert b"PermissionError" in run(f"import os; os.kill({os.getpid()}, 0)").stderr
    assert b"PermissionError" in run(f"import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, {os.getpid()})").stderr
    assert run("import os; os.abort()").reason == "SIGABRT"


def test_limits_cannot_be_raised_and_programs_that_it_becomes_have_them():
    """Also where the tests run as root."""
    assert run("import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))").code == 1
    fork = "import os; os.fork()"
    assert b"PermissionError" in run(f"import os; os.execv({sys.executable!r}, ['python', '-c', {fork!r}])").stderr


def test_what_it_started_ends_with_it(tmp_path):
    """Unconfined, a child of it may live, but no longer than it: the pipe that the child holds is closed."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    child = f"held = open({str(tmp_path / 'pipe')!r}, 'w'); print(file=held, flush=True)"
    code = f"import os, time\nif not os.fork(): {child}\ntime.sleep(3600)"
    try:
        assert run(code, wall_seconds=2, unconfined=True).reason == "wall seconds"
        heard = b""
        while select.select([reader], [], [], 30)[0] and (more := os.read(reader, 9)):
            heard += more
        assert select.select([reader], [], [], 0)[0] and os.read(reader, 9) == b"", "the child still holds it"
    finally:
        os.close(reader)


def test_what_cannot_be_run_is_said(monkeypatch):
    with pytest.raises(UserError, match=r"no-such-program cannot be run with limits: .*No such file"):
        run_limited(["no-such-program"], seconds=1, memory_mb=200)
    monkeypatch.setattr(limited, "LIBRARY", "libnothing.so.2")
    with pytest.raises(UserError, match="apt-get install libseccomp2"):
        limited.refuse_unconfined()
    with pytest.raises(UserError, match="libnothing"):
        run("print(1)")
    assert run("print(1)", unconfined=True).stdout == b"1\n"
