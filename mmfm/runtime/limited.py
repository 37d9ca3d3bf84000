"""Another program with limits: CPU and wall seconds, memory, output; no network, no process beside it, no file written.

For what a model wrote and for what comes inside files that people share. The program is started by `confine.py`, which
gives up what the program should not have and then becomes it. It may read what the user may read.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mmfm.config import UserError, require

CONFINE = Path(__file__).with_name("confine.py")
LIBRARY = "libseccomp.so.2"
OUTPUT_BYTES = 1 << 20  # of each of its two outputs
LIMITS = {signal.SIGXCPU: "cpu seconds", signal.SIGXFSZ: "output"}
ALONE = "without it a program is run only where unconfined=True allows it"


class Outcome(NamedTuple):
    """What became of a program.

    `code` is its exit status, or minus the signal that ended it. `reason` is the limit that ended it: "cpu seconds",
    "wall seconds", "output" or "memory"; the signal's name for any other signal; "" where it ended by itself.
    """

    code: int
    stdout: bytes
    stderr: bytes
    reason: str


def run_limited(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    seconds: int | float,
    memory_mb: int,
    network: bool = False,
    wall_seconds: int | float | None = None,
    output_bytes: int = OUTPUT_BYTES,
    unconfined: bool = False,
) -> Outcome:
    """Run a program to its end, or to a limit, in an empty folder and with an environment of its own.

    `seconds` are of CPU, rounded up to whole ones, so that a busy machine changes nothing; on the clock it has
    `wall_seconds` (10 + 4 x seconds). `memory_mb` is address space, which for Python without packages is about 30.
    By seccomp(2) the program cannot start another one (threads are allowed), open a socket unless `network`, signal
    any other process, or create, change or remove a file. `unconfined` does without seccomp: limits alone.

    Raises:
        UserError: there is no such program, or no means here to confine it.
    """
    with tempfile.TemporaryDirectory(prefix="mmfm-limited-") as folder:
        root = Path(folder)
        report, given, out, err = (root / name for name in ("report", "stdin", "stdout", "stderr"))
        (root / "empty").mkdir()
        given.write_bytes(stdin)
        policy = {
            "report": str(report), "cpu_seconds": max(1, -int(-seconds // 1)), "memory_bytes": memory_mb << 20,
            "file_bytes": output_bytes, "network": network, "library": "" if unconfined else LIBRARY,
        }  # fmt: skip
        command = [sys.executable, "-I", "-S", "-B", str(CONFINE), json.dumps(policy), *argv]
        wall = 10 + 4 * seconds if wall_seconds is None else wall_seconds
        with given.open("rb") as feed, out.open("wb") as first, err.open("wb") as second:
            code = _wait(command, root / "empty", feed.fileno(), first.fileno(), second.fileno(), wall)
        told = report.read_text(encoding="utf-8") if report.exists() else "it did not start"
        if told and code is not None:
            raise UserError(f"{argv[0]} cannot be run with limits: {told}")
        stdout, stderr = out.read_bytes(), err.read_bytes()
    reason = "wall seconds" if code is None else _reason(code, stdout, stderr, output_bytes)
    return Outcome(-signal.SIGKILL if code is None else code, stdout, stderr, reason)


def refuse_unconfined() -> None:
    """A UserError where programs cannot be confined, before any work that would end in it."""
    require(sys.platform == "linux", f"programs are confined by seccomp, which Linux alone has; {ALONE}")
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        raise UserError(f"there is no {LIBRARY} here (apt-get install libseccomp2); {ALONE}") from None


def _wait(command: Sequence[str], folder: Path, feed: int, out: int, err: int, wall: int | float) -> int | None:
    """The exit status, or None where the clock ended it. Whatever happens, nothing of its group lives on."""
    own = {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, cwd=folder, env=own, stdin=feed, stdout=out, stderr=err, start_new_session=True
    )  # a session of its own: no terminal, and a group that ends as one
    try:
        return child.wait(timeout=wall)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _reason(code: int, stdout: bytes, stderr: bytes, output_bytes: int) -> str:
    if max(len(stdout), len(stderr)) >= output_bytes:
        return "output"
    if code and stderr.rstrip().rpartition(b"\n")[2].startswith(b"MemoryError"):  # what Python says of itself
        return "memory"
    if code >= 0:
        return ""
    return LIMITS.get(signal.Signals(-code), signal.Signals(-code).name)
