"""What this machine gives: shares of a container, open files, shared memory; and what its faults are called."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfm.__main__ import report
from mmfm.data import waiting, worker_transfer
from mmfm.data.batch import Batch, Ids, Items
from mmfm.data.open_files import OpenFiles
from mmfm.data.stream_plan import Loaded
from mmfm.runtime import machine

HERE = Path(__file__).parent.parent


def group(root: Path, own: str, files: dict[str, str]) -> dict[str, Path]:
    """A tree of control groups, and what a process of `own` reads of itself."""
    for name, text in files.items():
        (root / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "groups" / name).write_text(text + "\n")
    (root / "own").write_text(own + "\n")
    return {"groups": root / "groups", "own": root / "own"}


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "150000 100000", "cpu.max": "max 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),  # a group above limits too
        ("0::/not/mounted/here", {"cpu.max": "300000 100000"}, 3.0),  # as a container sees it
        (
            "4:cpu,cpuacct:/x",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "200000", "cpu,cpuacct/x/cpu.cfs_period_us": "50000"},
            4,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_a_container_has_its_share_of_the_cores(tmp_path, own, files, cores):
    assert machine.quota(**group(tmp_path, own, files)) == cores


def test_cores_are_those_that_may_be_used(monkeypatch):
    """By affinity and by quota, whichever gives less; never none."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    for quota, cores in ((math.inf, 8), (2.0, 2), (1.5, 2), (0.2, 1)):
        monkeypatch.setattr(machine, "quota", lambda quota=quota: quota)
        assert machine.cores() == cores


def test_nothing_counts_the_cores_of_the_host():
    """`os.cpu_count` is that of the whole host, whatever a container may use of it."""
    files = [path for folder in ("mmfm", "tools") for path in (HERE / folder).rglob("*.py")]
    assert [path.name for path in files if "cpu_count(" in path.read_text("utf-8")] == ["machine.py"]


@pytest.mark.parametrize(
    ("own", "files", "room"),
    [
        ("0::/a", {"a/memory.max": "1000", "a/memory.current": "900", "a/memory.stat": "inactive_file 300"}, 400),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": "900"}, None),
        (
            "4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "1000", "memory/a/memory.usage_in_bytes": "1500"},
            0,
        ),
        (
            "4:memory:/",
            {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"},
            None,
        ),
    ],
)
def test_a_container_has_its_share_of_the_memory(tmp_path, monkeypatch, own, files, room):
    monkeypatch.setattr(machine, "_free_bytes", lambda: 10**9)
    assert machine.available_bytes(**group(tmp_path, own, files)) == (10**9 if room is None else room)


# Open files

MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from pathlib import Path
from mmfm.data.shards import Shards
sources = [Shards(sorted(Path(folder).glob("*.tar"))) for folder in sys.argv[1:]]
for _ in range(2):
    for shards in sources:
        assert [shards[i].key for i in range(len(shards))] == ["s"] * len(shards)
print("read")
"""


def test_more_shards_of_several_sources_than_files_may_be_open(tmp_path, write_shard):
    """Three sources of thirty shards where 64 files may be open: all of them together keep to the limit."""
    for source in "abc":
        (tmp_path / source).mkdir()
        for number in range(30):
            write_shard(tmp_path / source / f"{number:02d}.tar", {"s": {"txt": b"x"}})
    words = [sys.executable, "-c", MANY, *(str(tmp_path / source) for source in "abc")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=HERE)
    assert done.stdout == "read\n", done.stderr


def test_the_limit_of_open_files_is_raised_to_what_is_allowed():
    code = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (40, 90)); from mmfm.runtime import machine as m; "
    code += "print(m.open_files(), r.getrlimit(r.RLIMIT_NOFILE))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE)
    assert done.stdout == "90 (90, 90)\n", done.stderr


def test_what_is_lent_stays_open_and_what_rests_makes_room(tmp_path):
    """The file used longest ago goes first; one that another reader holds does not; none is left when told so."""
    (tmp_path / "x").write_bytes(b"0123")
    files, opened = OpenFiles(most=2), []

    def open_file() -> int:
        opened.append(os.open(tmp_path / "x", os.O_RDONLY))
        return opened[-1]

    with files.lent((0, 0), open_file) as held:
        for number in (1, 2, 3, 2):
            with files.lent((0, number), open_file) as other:
                assert other != held
        assert os.pread(held, 2, 1) == b"12" and len(files) == 2
        assert len(opened) == 5  # 0, 1, 2, 3, and 2 again, which made room for 3
    files.forget(0)
    assert len(files) == 0


def test_a_full_table_of_files_is_emptied_and_tried_again(tmp_path):
    (tmp_path / "x").write_bytes(b"0123")
    files, refusals = OpenFiles(most=9), [errno.EMFILE]

    def open_file() -> int:
        if len(files) and refusals:
            raise OSError(refusals.pop(), "Too many open files")
        return os.open(tmp_path / "x", os.O_RDONLY)

    with files.lent((0, 0), open_file):
        pass
    with files.lent((0, 1), open_file) as file:
        assert os.pread(file, 4, 0) == b"0123" and len(files) == 1
    files.forget(0)


# Shared memory


def a_batch() -> Loaded:
    items = Items(
        x=torch.arange(12, dtype=torch.uint8).reshape(2, 1, 2, 3),
        keep=torch.ones(2, 1, dtype=torch.bool),
        rows=torch.arange(2),
        draws=torch.rand(2, 4),
        written=Ids(torch.arange(4).reshape(2, 2), torch.ones(2, 2, dtype=torch.bool)),
    )
    return Loaded(Batch(size=2, items={"image": items}, positive_ids=torch.arange(2), keys=("a", "b")), (2,), ())


def test_a_batch_goes_through_the_pipe_where_shared_memory_is_full(monkeypatch):
    """The same batch arrives, bit for bit, and nothing of it is in shared memory."""
    loaded, calls = a_batch(), []

    def full(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor)
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    sent = worker_transfer.handed_over(loaded)
    assert isinstance(sent, worker_transfer.Piped) and calls and not worker_transfer.tensors(sent)
    back = worker_transfer.taken(sent)
    assert type(back) is Loaded and back.batch.keys == ("a", "b") and back.reads == (2,)
    for mine, its in zip(worker_transfer.tensors(loaded), worker_transfer.tensors(back), strict=True):
        assert mine.dtype == its.dtype and torch.equal(mine, its)
    assert (
        not any(tensor.is_shared() for tensor in worker_transfer.tensors(back))
        and len(worker_transfer.tensors(back)) == 7
    )


def test_a_batch_is_shared_where_there_is_room():
    sent = worker_transfer.handed_over(a_batch())
    assert isinstance(sent, Loaded) and all(tensor.is_shared() for tensor in worker_transfer.tensors(sent))


# Waiting for a batch


class Waiting:
    """A loader that times out until `gives`; the clock advances by a second each time."""

    def __init__(self, gives: int = 10**9) -> None:
        self.now, self.gives, self.ended = 0.0, gives, False

    def __iter__(self):
        return self

    def __next__(self):
        self.now += 1.0
        if self.now > self.gives:
            return a_batch()
        raise RuntimeError("DataLoader timed out after 1.0 seconds")

    def _shutdown_workers(self):
        self.ended = True


def test_a_slow_batch_is_waited_for():
    assert waiting.next_batch(batches := Waiting(gives=100), lambda: False, lambda: batches.now).reads == (2,)


def test_who_is_asked_to_end_while_no_batch_comes_ends():
    """Not after half an hour, and the loader's processes with it."""
    batches = Waiting()
    with pytest.raises(waiting.StoppedWaiting, match=r"stopped, as asked, .*; --resume continues"):
        waiting.next_batch(batches, lambda: batches.now > 5, lambda: batches.now)
    assert batches.ended and batches.now <= 5 + waiting.ASKED_S + 2


def test_a_disk_that_hangs_is_an_error_in_the_end():
    batches = Waiting()
    error = waiting.next_batch(batches, lambda: False, lambda: batches.now)
    assert isinstance(error, ChildProcessError) and "no batch came for 30 minutes" in str(error) and batches.ended


# Words

DIED = "DataLoader worker (pid 7) is killed by signal: Killed. "
FAULTS: dict[str, tuple[BaseException, str]] = {
    "memory": (MemoryError(), "mmfm: not enough memory; lower data.batch_size"),
    "numpy": (np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("u1")), "mmfm: not enough memory (Unable to"),
    "torch": (
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        "mmfm: not enough memory (",
    ),
    "cuda": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        "mmfm: not enough memory on the G",
    ),
    "cublas": (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        "mmfm: not enough memory on the G",
    ),
    "killed": (
        RuntimeError(DIED),
        "mmfm: a loader process was killed, most likely for lack of memory",
    ),
    "bus": (
        RuntimeError(DIED.replace("Killed", "Bus error")),
        "mmfm: a loader process ended by a signal (Bus error)",
    ),
    "gone": (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "mmfm: a loader process ended, most"),
    "files": (
        OSError(errno.EMFILE, "Too many open files", "a.tar"),
        "mmfm: too many files are open (a.tar); all",
    ),
    "ancdata": (RuntimeError("received 0 items of ancdata"), "mmfm: too many files are open; allow more"),
    "full": (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "mmfm: the disk is full (runs/x); free"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x"), "mmfm: the disk is full (runs/x); free"),
    "read only": (OSError(errno.EROFS, "Read-only file system", "runs"), "mmfm: Read-only file system (runs); grant"),
    "processes": (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "mmfm: no further process or"),
    "wrapped": (ValueError("callback failed"), "mmfm: ValueError: callback failed; this is a fault of mmfm"),
}


@pytest.mark.parametrize(("error", "words"), FAULTS.values(), ids=FAULTS)
def test_what_the_machine_lacks_is_no_fault_of_mmfm(error, words, capsys):
    """One line, exit status 1, what to do; and only what nobody foresaw is called our fault."""
    assert report(error) == 1
    said = capsys.readouterr().err
    assert said.startswith(words) and said.count("\n") == 1
    assert ("fault of mmfm" in said) == (error is FAULTS["wrapped"][0])


def test_only_training_is_resumed(capsys):
    """A full disk under `mmfm export` has another remedy than one under `mmfm train`."""
    for training, remedy in ((True, "--resume continues"), (False, "give the same command again")):
        assert report(OSError(errno.ENOSPC, "No space left on device", "x"), training) == 1
        assert f"mmfm: the disk is full (x); free some space, then {remedy}" in capsys.readouterr().err


def test_a_fault_of_the_machine_is_found_under_what_a_library_made_of_it(capsys):
    error = ValueError("callback failed")
    error.__cause__ = MemoryError()
    assert report(error) == 1 and capsys.readouterr().err.startswith("mmfm: not enough memory")


def test_threads_that_wait_sleep(monkeypatch):
    """The command line says so before torch is imported; what a person chose stays."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "200")
    machine.spare_threads()
    assert os.environ["OMP_WAIT_POLICY"] == "passive" and os.environ["KMP_BLOCKTIME"] == "200"
    code = "import sys, os; from mmfm.__main__ import main; main(['--version']); "
    code += "assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE, env=environment)
    assert done.stdout.splitlines()[-1] == "passive", done.stderr
