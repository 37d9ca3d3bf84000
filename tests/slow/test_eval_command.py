"""`mmfm eval RUN --ranks N` as people start it: the files of one process, whatever N; and how it ends when it must."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_eval_ranks import mixture, saved_run, shard

ONE_LINE = "mmfm: rank 1 was killed by SIGKILL; start the command again\n"


def command(folder: Path, *words: str) -> list[str]:
    options = ("--batch-size", "3", "--bootstrap", "20", "--max-tokens", "4")
    return [sys.executable, "-W", "ignore", "-m", "mmfm", "eval", str(folder), *options, *words]


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command(folder, *words), text=True, env=environment, **pipes)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status, and what it said of its end. All of its ranks hold its output open: none of them is left."""
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def test_any_number_of_ranks_writes_the_same_files(tmp_path: Path) -> None:
    """Two splits, all modalities, a bad sample; 1, 2 and 3 ranks, and two by torchrun: byte for byte."""
    spec = mixture(tmp_path / "a")
    other = shard(tmp_path / "b" / "0.tar", {f"p{n}": {"image": n, "txt": "one"} for n in range(4)})
    made = saved_run(tmp_path, spec)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    starts = {n: command(made.folder, "--ranks", str(n)) for n in (1, 2, 3)}
    starts[4] = [*launcher, "-m", "mmfm", *starts[1][5:-2]]
    for n, words in starts.items():
        out = ("--data", spec, other, "--out", str(tmp_path / f"{n}.json"))
        done = subprocess.run([*words, *out], capture_output=True, text=True, timeout=600, env=environment())
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1  # the first alone speaks
        for name in ("{}.json", "{}.details.json", "{}.samples.json"):
            assert (tmp_path / name.format(n)).read_bytes() == (tmp_path / name.format(1)).read_bytes(), (n, name)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def test_a_mistake_that_another_rank_finds_is_one_line(tmp_path: Path) -> None:
    """In the second batch, which the second rank reads: said once, as a mistake, and nothing is written."""
    samples = {f"{n}": {"image": n, "cls": "x" if n == 4 else "0", "txt": "one"} for n in range(9)}
    made = saved_run(tmp_path, shard(tmp_path / "val" / "0.tar", samples))
    status, said = ended(start(made.folder, "--ranks", "2"))
    assert status == 2 and said.count("\n") == 1
    assert "4: the .cls is no whole number; write the class's place in classnames.txt" in said
    assert not (made.folder / "results.json").exists()


def second_rank(process: "subprocess.Popen[str]") -> int | None:
    """Its process, once it is told its rank; libraries have children of their own."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
    return None


def test_a_rank_that_is_killed_ends_all(tmp_path: Path) -> None:
    """At whatever moment, here at its start: one line, and the status of a fault of the machine."""
    made = saved_run(tmp_path, mixture(tmp_path / "val"))
    process = start(made.folder, "--ranks", "2")
    while (rank := second_rank(process)) is None:
        assert process.poll() is None
    os.kill(rank, signal.SIGKILL)
    assert ended(process) == (1, ONE_LINE)


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "mmfm: interrupted\n"), (signal.SIGKILL, -signal.SIGKILL, "")]
)
def test_the_end_of_the_first_is_the_end_of_all(tmp_path: Path, number: int, status: int, said: str) -> None:
    """While ranks wait for a list of classes that nobody writes: Ctrl-C is one line, and no orphan stays."""
    made = saved_run(tmp_path, mixture(tmp_path / "val"))
    os.mkfifo(names := tmp_path / "classes.txt")
    process = start(made.folder, "--ranks", "2", "--classes", str(names))
    with names.open("w"):  # opens when one of them reads
        process.send_signal(number)
        assert ended(process) == (status, said)
