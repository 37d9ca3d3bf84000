"""`mmfm doctor`: an examination to the terminal and to files."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console

from mmfm.config import Run, UserError, require
from mmfm.doctor.findings import to_json
from mmfm.doctor.page import render
from mmfm.doctor.run import ScanOptions, examine
from mmfm.doctor.terminal import show
from mmfm.runtime.files import replace_file
from mmfm.runtime.machine import cores


def doctor(run: Run, *, config: str, html: str, json: str, samples: int, quick: bool, fetch: bool) -> int:
    """Exit status. Raises UserError where a file cannot be written: before the work, where that can be known."""
    pages = {"--html": html, "--json": json if json != "-" else ""}
    for option, file in pages.items():
        _check_place(option, file)
    torch.set_num_threads(min(run.threads, cores()))
    told = Console(stderr=True)
    with told.status("") if told.is_terminal else nullcontext() as status:
        watch = _plain(told) if status is None else (lambda what: status.update(f"looking at {what}"))
        found = examine(run, config, ScanOptions(samples=samples, quick=quick, fetch=fetch), watch)
    if json == "-":
        print(to_json(found), end="")
    else:
        show(found, Console(highlight=False))
    for option, file in pages.items():
        if file:
            _write(option, Path(file), render(found) if option == "--html" else to_json(found))
    return found.status


def _plain(console: Console) -> Callable[[str], None]:
    """Without a terminal each thing that is looked at is a line of its own."""
    return lambda what: console.print(f"looking at {what}", soft_wrap=True, highlight=False, markup=False)


def _check_place(option: str, file: str) -> None:
    path = Path(file)
    require(not file or not path.is_dir(), f"{option} {file} is a folder; give the name of a file in it")
    require(not file or path.parent.is_dir(), f"{option} {file}: there is no folder {path.parent}; make it first")


def _write(option: str, path: Path, text: str) -> None:
    try:
        replace_file(path, text)
    except OSError as why:
        raise UserError(f"{option} {path} cannot be written ({why.strerror}); choose another place") from None
