"""A configuration read from its Python file, or from a run's run.json."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mmfm.config import Run, UserError, require
from mmfm.config.extend import beside, execute
from mmfm.config.serialization import from_file

Made = TypeVar("Made")


def read_run(path: str | Path) -> Run:
    """The run that a config file (Python: its `config()` is executed) or a saved run.json describes; that of a run's
    folder goes on in this folder, wherever it was begun."""
    file = Path(path)
    if (file / "run.json").is_file():
        run, folder = read_run(file / "run.json"), file if file.name not in ("", "..") else file.resolve()
        return replace(run, out=str(folder.parent), name=folder.name)
    require(
        file.is_file(),
        f"no configuration at {path}; give a Python file with config() -> Run, or a saved run.json or its folder",
    )
    if file.suffix == ".json":
        return from_file(file)
    require(file.suffix == ".py", f"{path} is no configuration: it should end in .py or .json")
    return executed(file, "config", Run, "mmfm.config.Run")


def executed(file: Path, function: str, kind: type[Made], called: str) -> Made:
    """What this function of a Python file returns: the file is executed. `called`: what people import `kind` as."""
    try:
        with beside(file):
            make = getattr(execute(file), function, None)
            if not callable(make):
                raise UserError(
                    f"{file} has no function {function}(); it should define {function}() -> {kind.__name__}"
                )
            made = make()
    except UserError:
        raise
    except SystemExit as why:  # a script that ends the program, such as a command of its own
        raise UserError(
            f"{file} exits ({why.code}) before it gives a {kind.__name__}; {function}() should return it"
        ) from why
    except Exception as why:  # whatever the user's code raises
        raise UserError(f"{file} fails with {type(why).__name__}: {why}; --debug shows where") from why
    if not isinstance(made, kind):
        raise UserError(f"{file}: {function}() returned {type(made).__name__}, but should return {called}")
    return made
