"""What this machine gives one process: cores, memory, open files, shared memory. Standard library only.

A container has a share of its host: its control group says how much (cgroups(7), version 1 or 2), and the figures of
the whole host would promise what is not there.
"""

import contextlib
import errno
import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHARED = Path("/dev/shm")
MOST_OPEN_FILES = 1 << 16  # that a process asks for: more would only make tables larger
NO_LIMIT = 1 << 60  # bytes: version 1 says "unlimited" by a number of about this size
RESUME = "--resume continues from the last whole checkpoint"
AGAIN = "give the same command again"  # what is said instead, of all commands but train


def cores() -> int:
    """Processors that this process may use at the same time: those it may run on, no more than its group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, quota())))


def quota(groups: Path = GROUPS, own: Path = OWN) -> float:
    """Processors' worth of time that the control groups of this process allow; infinite where none limits it."""
    found = [math.inf]
    for folder in _folders("cpu", groups, own):
        limit = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"),
            _read(folder / "cpu.cfs_period_us"),
        ]
        if all(part.isdecimal() for part in limit) and len(limit) == 2 and int(limit[1]):
            found.append(int(limit[0]) / int(limit[1]))
    return min(found)


def available_bytes(groups: Path = GROUPS, own: Path = OWN) -> int:
    """Memory that a new process could take: what the machine has free, and what the control groups leave."""
    return max(0, min([_free_bytes(), *_left_bytes(groups, own)]))


def _free_bytes() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_bytes(groups: Path, own: Path) -> Iterator[int]:
    """Of each group that has a limit: the limit, less what is used and cannot be dropped at once."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for folder in _folders("memory", groups, own):
        for limit, used in ((_read(folder / a), _read(folder / b)) for a, b in names):
            if limit.isdecimal() and used.isdecimal() and int(limit) < NO_LIMIT:
                stat = re.findall(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                yield int(limit) - int(used) + max(map(int, stat), default=0)


def _folders(controller: str, groups: Path, own: Path) -> Iterator[Path]:
    """The folders of the control groups of this process, from its own up to the root, of both versions."""
    for line in _read(own).splitlines():
        _, names, path = (*line.split(":", 2), "", "")[:3]
        if names and controller not in names.split(","):
            continue
        for root in [groups / part for part in (names, controller)] if names else [groups, groups / "unified"]:
            place = root / path.lstrip("/")
            yield from (folder for folder in (place, *place.parents) if folder.is_relative_to(root))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def peak_bytes() -> int:
    """The most that this process has held in memory since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def open_files() -> int:
    """How many files this process may have open. Its own limit is first raised to what the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def shared_bytes(place: Path = SHARED) -> int | None:
    """Free bytes of the shared memory by which processes hand each other tensors; None where there is no such place."""
    try:
        found = os.statvfs(place)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def spare_threads() -> None:
    """Threads that wait for their turn sleep instead of spinning, for a program that has not imported torch yet.

    A spinning thread takes the core from the one that it waits for, wherever something else runs too. What a person
    has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same to the OpenMP of Intel and LLVM


KILLED = r"DataLoader worker \(pids?(?:\(s\))? ?[\d, ]+\) (?:is killed by signal: ([\w ]+)|exited unexpectedly.*)"
NO_MEMORY = r"out of memory|can't allocate memory|cannot allocate memory|failed to allocate|bad_alloc"
LESS = "lower data.batch_size (eval: --batch-size) or the model, or take a machine with more"


def trouble(error: BaseException) -> str | None:
    """What a fault of the machine means and what helps, in one line; None where it is none of the machine's."""
    told = " ".join(str(error).split())
    if isinstance(error, OSError):
        return _of_system(error)
    if error.__cause__ is not None:  # a library may have wrapped what the machine said
        return trouble(error.__cause__)
    if isinstance(error, MemoryError):
        return f"not enough memory{f' ({told})' if told else ''}; {LESS}"
    if not isinstance(error, RuntimeError):
        return None
    if re.search(KILLED, told):
        return worker_died(told)
    if re.search(r"CUDA error|CUDA out of memory|CUBLAS_STATUS_ALLOC|HIP out of memory", told):
        full = re.search(NO_MEMORY + "|ALLOC_FAILED", told, re.IGNORECASE)
        return f"not enough memory on the GPU ({told[:160]}); {LESS}" if full else None
    if re.search(r"Too many open files|items of ancdata", told):
        return _of_system(OSError(errno.EMFILE, told))
    if re.search(NO_MEMORY, told, re.IGNORECASE):
        return f"not enough memory ({told[:200]}); {LESS}"
    return None


def worker_died(told: str) -> str:
    """Of torch's words about a loader process that ended: by what, and what to do."""
    match = re.search(KILLED, told)
    by = match[1] if match and match[1] else ""
    if by in ("Killed", ""):
        how = "was killed" if by else "ended"
        why = f"a loader process {how}, most likely for lack of memory; lower data.num_workers or data.cache_mb"
        return f"{why}, and {RESUME}"
    return f"a loader process ended by a signal ({by}); {RESUME}, and data.num_workers=0 does without such processes"


def _of_system(error: OSError) -> str:
    where, why = f" ({error.filename})" if error.filename else "", error.strerror or str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk is full{where}; free some space, then {RESUME}"
        case errno.EMFILE | errno.ENFILE:
            return (
                f"too many files are open{where}; allow more (ulimit -n 4096) or lower data.num_workers, then {RESUME}"
            )
        case errno.ENOMEM:
            return f"not enough memory{where}; {LESS}"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{why}{where}; grant access to it, or choose another place"
        case errno.EAGAIN if sys.platform == "linux" and not error.filename:
            return f"no further process or thread can start ({why}); allow more (ulimit -u), or lower data.num_workers"
    return f"{why}{where}"
