"""`mmfm data judges FOLDER`: its options, and what it does when called. Torch is imported by the call."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Judges:
    """A recogniser of spoken numbers, trained here on voices that no model is trained on, to judge what models say."""

    folder: tyro.conf.Positional[str]
    """Where it is written, such as data/judges."""
    seed: int = 0
    """The same seed gives the same bytes on one kind of machine."""
    force: bool = False
    """Train again, and replace what a folder of judges holds."""

    def __call__(self) -> None:
        from mmfm.evals.judges import make

        make.make(Path(self.folder), seed=self.seed, force=self.force)
