"""Code of one's own in a run: objectives, callbacks, loggers and more, each a frozen dataclass in a file outside mmfm.

A configuration names it as a Python object, `objectives=(MarginLoss(margin=0.2),)`, or as "margin_loss.py:MarginLoss",
a file beside the configuration. Its fields are its options; `run.json` keeps these, with the file's name and sha256.

Code is only ever executed out of files that a person has given: the configuration that is trained, what that imports,
and what `--extension FILE` or `mmfm.load(run, extensions=[FILE])` name. `run.json` can name a file, but never has one
executed: it opens only where a file of equal name and content was given, and is refused in one line otherwise. So a
folder that came from elsewhere is data, whatever it says.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from mmfm.config.base import Checked, UserError, require

_beside: list[Path] = []  # the folders of the configurations that are being executed, the innermost last
_given: list[str] = []  # files that a person has given to this command
_imported: set[str] = set()  # modules that a configuration brought, so that another one's of the same name is read anew
_classes: dict[tuple[str, str], type["Extension"]] = {}  # by "file.py:Name" and the sha256 of the file


class Extension(Checked):
    """What all of them share: where their class was written."""

    file: ClassVar[Path | None] = None
    sha256: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        source = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if source is None or cls.__module__.startswith("mmfm."):
            return
        cls.file = Path(source)
        cls.sha256 = hashlib.sha256(cls.file.read_bytes()).hexdigest()
        _classes[cls.spec(), cls.sha256] = cls

    @classmethod
    def spec(cls) -> str:
        """The file's name and the class, as run.json keeps them; the file is found by what is in it."""
        require(cls.file is not None, f"{cls.__name__} is written in no file, so that no run could be opened again")
        return f"{Path(str(cls.file)).name}:{cls.__name__}"

    @classmethod
    def named(cls, spec: str) -> "Extension":
        """The extension that "file.py:Name" means, with its default options; beside the configuration, else here."""
        file, _, name = spec.rpartition(":")
        require(bool(file), f"{spec!r} is no {cls.__name__}; give one, or 'file.py:Name'")
        path = next((place / file for place in reversed(_beside) if (place / file).is_file()), Path(file))
        kind = getattr(execute(path), name, None)
        told = f"{path} has no {cls.__name__} called {name!r}; it should define it as a dataclass"
        require(isinstance(kind, type) and issubclass(kind, cls), told)
        made: Any = kind
        return made()

    def saved(self) -> dict[str, Any]:
        """As it stands in run.json."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"extension": self.spec(), "sha256": self.sha256, "options": options}


def saved_class(kind: type[Extension], value: Any, where: str) -> type[Extension]:
    """The class that an entry of run.json names; UserError unless its file was given, with the same content."""
    told = f"{where}: {value!r} should be an object of extension, sha256 and options"
    require(isinstance(value, dict) and value.keys() == {"extension", "sha256", "options"}, told)
    spec, digest = str(value["extension"]), str(value["sha256"])
    found, file = _classes.get((spec, digest)), spec.rpartition(":")[0]
    if found is None:
        other = any(known == spec for known, _ in _classes)
        why = f"{file} is not as it was then (sha256 {digest[:12]}...)" if other else f"it needs {file} for it"
        raise UserError(f"{where} uses {spec}, and {why}; give that file: --extension {file}, or extensions=[...]")
    require(issubclass(found, kind), f"{where}: {spec} is no {kind.__name__}")
    return found


def give(files: Iterable[str | Path]) -> None:
    """Execute these files, so that runs whose extensions are written there can be opened; "file.py:Name" is that file,
    which must have the extension."""
    for spec in map(str, files):
        file, _, name = spec.rpartition(":") if spec.rpartition(":")[0].endswith(".py") else (spec, "", "")
        module = execute(Path(file))
        require(not name or hasattr(module, name), f"{file} has no extension called {name!r}; check the name")
        _given.append(file)


def given_words() -> list[str]:
    """The words of a command line that give another process the same files."""
    return [word for file in _given for word in ("--extension", file)]


def execute(file: Path) -> ModuleType:
    """The module that a Python file makes when it is executed. It may import what lies beside it, as a script may, and
    by the name of its folder: `import neighbor`, `from configs.neighbor import config`."""
    require(file.is_file(), f"there is no file {str(file)!r}; check the path")
    path = file.resolve()
    spec = importlib.util.spec_from_file_location(f"mmfm_given_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is no Python file; its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(spec.name)
    with beside(path):
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(spec.name, None)
            if before is not None:
                sys.modules[spec.name] = before
            raise
    return module


@contextmanager
def beside(file: Path) -> Iterator[None]:
    """Lets this file import its neighbors, and forgets those of an earlier one."""
    file = file.resolve()
    package = file.parent.parent
    paths = [str(file.parent), str(package)]
    if not _beside:
        for name in _imported & sys.modules.keys():
            del sys.modules[name]
        _imported.clear()
    known = set(sys.modules)
    sys.path[:0] = paths
    _beside.append(file.parent)
    try:
        yield
    finally:
        _beside.pop()
        for path in paths:
            sys.path.remove(path)
        for name in sys.modules.keys() - known:
            source = getattr(sys.modules[name], "__file__", None)
            own = source is not None and Path(source).parent in (file.parent, package)
            if own or name == file.parent.name:
                _imported.add(name)


@dataclass(frozen=True, kw_only=True)
class Objective(Extension):
    """A term of the loss. It has no parameters of its own; those of the model are at hand.

    `modalities` says what a sample must hold to count; all that have a tower are embedded, and `step.pairs("image",
    "text")` gives the embeddings of samples that hold both. `tasks` names what is read and written besides, in one pass
    each: `step.outputs["image>text"]`. `loss(step)`, of a `mmfm.objectives.joint.StepOutputs`, returns this rank's
    share: the shares of all ranks add up. Every rank must enter each collective of `step.ranks`, whatever it holds.
    """

    name: str = ""  # in logs; empty: that of the class
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight >= 0, f"{type(self).__name__}.weight={self.weight} must not be negative")
        if not self.name:
            object.__setattr__(self, "name", type(self).__name__)

    @property
    def modalities(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def tasks(self) -> tuple[str, ...]:
        return ()

    def loss(self, step: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Metric(Extension):
    """A score of the tasks of a suite. What it is called there and how it reads stand on the class, as for the metrics
    of mmfm (mmfm/evals/metrics_table.py).

    `values(first, second)` gives a number for each row, whose mean is the score, or two, whose sums are divided; they
    make its interval and its comparisons. `of` says of what. "texts", in Caption and Transcribe: the references of each
    row, and what was written. "ranking", in Classify and Retrieve: scores, float [n, items], and what is right, bool
    [n, items], some rows at a time. `chance(first, second)`, of all rows or the first so many, is what guessing gives.
    """

    of: ClassVar[Literal["texts", "ranking"]] = "texts"
    label: ClassVar[str] = ""
    meaning: ClassVar[str] = ""
    unit: ClassVar[str] = "number"
    higher_is_better: ClassVar[bool | None] = None
    headline: ClassVar[bool] = True
    chance_of: ClassVar[str] = ""

    def __post_init__(self) -> None:
        require(self.of in ("texts", "ranking"), f"{type(self).__name__}.of={self.of!r} must be texts or ranking")

    @property
    def name(self) -> str:
        """In results: that of the class."""
        return type(self).__name__

    def values(self, first: Any, second: Any, /) -> Any:
        raise NotImplementedError

    def chance(self, first: Any, second: Any, /) -> float:
        return float("nan")


@dataclass(frozen=True, kw_only=True)
class Callback(Extension):
    """What happens between two steps, before scores and checkpoints: `build(run)` gives a callback of Lightning, which
    may be an `AfterStep` of `mmfm.training.callbacks`, on each rank."""

    def build(self, run: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Logger(Extension):
    """Where metrics go besides metrics.jsonl and TensorBoard: `build(run)` gives a logger of Lightning."""

    def build(self, run: Any) -> Any:
        raise NotImplementedError
