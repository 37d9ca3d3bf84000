"""Files and folders that are there whole or not at all, their sizes and checksums, and a folder's lock.

Standard library only.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from mmfm.config import UserError, require

CHUNK = 1 << 22
Result = TypeVar("Result")
MANIFEST_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class Sum(NamedTuple):
    """What a manifest says of a file."""

    bytes: int
    crc32: int


def write_file(path: Path, data: bytes | Iterable[bytes | memoryview]) -> Sum:
    """All bytes, or all pieces one after the other, on the disk, or an error; their sum is made on the way."""
    size, value = 0, 0
    with path.open("wb") as file:
        for piece in (data,) if isinstance(data, bytes) else data:
            file.write(piece)
            size, value = size + len(piece), zlib.crc32(piece, value)
        file.flush()
        os.fsync(file.fileno())
    return Sum(size, value)


def replace_file(path: Path, data: bytes | str) -> None:
    """The new content or the old, never a part: a temporary file beside it, then a rename. Text is written as UTF-8."""
    replace_files({path: data})


def replace_files(files: Mapping[Path, bytes | str]) -> None:
    """As `replace_file`; no file gets its name before all of them are on the disk."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        for path, data in files.items():
            write_file(temporary[path], data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)
        for path in files:
            os.replace(temporary[path], path)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise


# Folders


@contextmanager
def whole_folder(folder: str | Path, suffix: str = "") -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its name at the end, from what has it now, if anything.

    suffix: of its name until then; by default that is one of this process alone.

    After an error, Ctrl-C included, what was there is there as before, and nothing else. A process that dies between
    the two renames leaves the old one beside, and the next call brings it back. OSError as it comes: the caller knows
    what to say, and whether anything may be replaced.
    """
    target = Path(folder).resolve()
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    temporary = target.with_name(target.name + suffix if suffix else f".{target.name}.{os.getpid()}.tmp")
    _recover(target)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _swap(temporary, target, aside)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """The old one is removed last, when the new one has its name and the disk knows it."""
    try:
        if target.exists():
            os.replace(target, aside)
        os.replace(new, target)
        sync_folder(target.parent)
    except BaseException:
        if target.exists() and not new.exists():
            os.replace(target, new)
        if aside.exists():
            os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _recover(target: Path) -> None:
    left = sorted(target.parent.glob(f".{target.name}.*.old")) if target.parent.is_dir() else []
    if left and not target.exists():
        os.replace(left[-1], target)


def sync_folder(folder: Path) -> None:
    """The names in it are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def output_folder(folder: Path, suffix: str = "") -> Iterator[Path]:
    """`whole_folder` with a UserError where it cannot be written; messages name the folder that was asked for."""
    temporary: Path | None = None
    try:
        with whole_folder(folder, suffix) as temporary:
            yield temporary
    except OSError as why:
        remedy = "make room or grant access there, or choose another folder"
        raise UserError(f"cannot write {folder}: {why.strerror or why}; {remedy}") from why
    except UserError as why:
        if temporary is None or type(why) is not UserError:
            raise
        raise UserError(str(why).replace(str(temporary), str(folder))) from None


# Checksums and manifests


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def manifest(files: Mapping[str, bytes | Path | Sum], **more: Any) -> bytes:
    """JSON that lists size and CRC-32 of these files by name, after what `more` says. A path stands for its content."""
    listed = {name: _sum(data)._asdict() for name, data in files.items()}
    return (json.dumps({**more, "files": listed}, indent=2) + "\n").encode()


def _sum(data: bytes | Path | Sum) -> Sum:
    if isinstance(data, Sum):
        return data
    return Sum(data.stat().st_size, checksum(data)) if isinstance(data, Path) else Sum(len(data), zlib.crc32(data))


class Manifest:
    """A folder's files as its manifest lists them. Whatever is missing, cut or changed is a UserError with `remedy`.

    `kind` says what the folder is. Names outside `known`, or a missing one of `required`, are refused; without `known`,
    those that are no plain names are. So nothing outside the folder is read.
    """

    def __init__(
        self, path: Path, kind: str, remedy: str, known: Container[str] | None = None, required: Iterable[str] = ()
    ) -> None:
        self.path, self.folder, self.kind, self.remedy = path, path.parent, kind, remedy
        try:
            files = json.loads(path.read_bytes())["files"]
            self.files = {name: Sum(int(entry["bytes"]), int(entry["crc32"])) for name, entry in files.items()}
        except MANIFEST_ERRORS as why:
            raise self._broken(why) from None
        wrong = [n for n in self.files if (n != Path(n).name if known is None else n not in known)]
        wrong += [name for name in required if name not in self.files]
        require(not wrong, f"{path} should not lack or list {min(wrong, default='')!r}; {remedy}")

    def read(self, name: str) -> bytes:
        """The bytes of one file, which are those that were written."""

        def whole(path: Path) -> tuple[bytes, Sum]:
            data = path.read_bytes()
            return data, Sum(len(data), zlib.crc32(data))

        return self.checked(name, whole)

    def verify(self, names: Iterable[str] | None = None) -> None:
        """As `read` of these files, else of all, without keeping what is read."""
        for name in self.files if names is None else names:
            self.checked(name, lambda path: (None, Sum(path.stat().st_size, checksum(path))))

    def checked(self, name: str, read: Callable[[Path], tuple[Result, Sum]]) -> Result:
        """What `read` makes of one file, whose sum it gives too."""
        require(name in self.files, f"{self.folder} has no {name}; its {self.path.name} lists {', '.join(self.files)}")
        try:
            made, found = read(self.folder / name)
        except OSError as why:
            raise self._broken(why) from None
        self._compare(name, found)
        return made

    def verify_sizes(self, names: Iterable[str]) -> None:
        """As `verify` without reading: what is missing or cut is found, and what is changed is not."""
        for name in names:
            self.checked(name, lambda path: (None, Sum(path.stat().st_size, self.files[path.name].crc32)))

    def _broken(self, why: Exception) -> UserError:
        return UserError(f"{self.folder} is no whole {self.kind} ({why}); {self.remedy}")

    def _compare(self, name: str, found: Sum) -> None:
        if found != self.files[name]:
            message = f"{found.bytes} bytes where {self.files[name].bytes} were written, or not the same ones"
            raise UserError(f"{self.folder / name} is damaged: {message}; {self.remedy}")


# Locks


@contextmanager
def locked(
    folder: Path, doing: str = "trained", remedy: str = "stop it, or use another --name", inside: str = ""
) -> Iterator[None]:
    """The folder for this process alone, or a UserError that names who has it. The kernel frees it at death.

    A record lock and no flock: children do not inherit it, so that a worker that outlives its parent by a moment
    holds nothing, and NFS passes it to the server. There it needs the lock service; where that is off, the error
    says so. A folder that was made for the lock and got nothing else is removed again.

    inside: the folder in it where the lock lies.
    """
    created = not (folder / inside).exists()
    path = folder / inside / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _take(file, folder, doing, remedy)
        try:
            yield
        finally:
            if created and path.is_file() and [entry.name for entry in path.parent.iterdir()] == [".lock"]:
                path.unlink()
                path.parent.rmdir()


def _take(file: IO[str], folder: Path, doing: str, remedy: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as why:
        if why.errno not in (errno.EACCES, errno.EAGAIN):
            message = f"{folder} cannot be locked ({why.strerror}); use a folder on another file system"
            raise UserError(message) from why
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(f"{folder} is being {doing} by {holder}; wait for it, {remedy}") from None
    require(os.fstat(file.fileno()).st_nlink > 0, f"{folder} was just removed by another process; start again")
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
