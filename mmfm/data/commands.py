"""The commands `mmfm data ...`: each is its options, as a dataclass, and what it does when called.

What a field's docstring says is its line in `mmfm data COMMAND --help`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Written and spoken numbers as WebDataset shards, from what pip installed."""

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/numbers."""
    seed: int = 0
    """The same seed gives the same bytes."""

    def __call__(self) -> None:
        from mmfm.data import numbers

        numbers.build(Path(self.folder), seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Stamps:
    """Pictures, captions in many languages, spoken descriptions and sound effects, from a package of Debian."""

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/stamps."""
    deb: str = ""
    """The package tuxpaint-stamps-default as a file; else apt-get downloads it into FOLDER.deb, where it stays."""

    def __call__(self) -> None:
        from mmfm.data import stamps

        stamps.build(Path(self.folder), deb=Path(self.deb) if self.deb else None)


DATA: dict[str, type[Any]] = {"numbers": Numbers, "stamps": Stamps}
