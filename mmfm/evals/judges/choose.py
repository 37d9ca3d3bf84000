"""Judges by name."""

from collections.abc import Callable
from pathlib import Path

from mmfm.config import require
from mmfm.evals.judges import speech
from mmfm.evals.judges.contract import Judge
from mmfm.evals.judges.digits import Digits
from mmfm.evals.judges.whisper import Whisper

FOLDER = Path("data/judges")  # where `mmfm data judges` is told to write, as the README has it
JUDGES: dict[str, Callable[[Path], Judge]] = {
    "digits": lambda folder: Digits(),
    "speech": speech.load,
    "whisper": lambda folder: Whisper(),
}


def judge(name: str, folder: Path = FOLDER) -> Judge:
    """A judge, ready to read. folder: what `mmfm data judges FOLDER` made, for those that were trained.

    Errors:
        UserError: no judge of that name; or its wheel or its folder is not there.
    """
    require(name in JUDGES, f"there is no judge {name!r}; there are {', '.join(JUDGES)}")
    return JUDGES[name](folder)
