"""What is refused before anything is loaded: what could execute."""

import os
import re
from pathlib import Path

from mmfm.config import require

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def refuse_unsafe() -> None:
    """A UserError where the environment makes torch execute what is in the files that it loads."""
    require(not os.environ.get(UNSAFE), f"{UNSAFE} is set: loaded files could execute code; unset it")


def refuse_foreign(where: str | Path) -> None:
    """A UserError for addresses, and for checkpoints of the kinds that are pickles: those are not even opened."""
    name, path = str(where), Path(where)
    # A Path has one slash where the address had two.
    require(not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name), f"{name} is an address; give a local folder")
    for folder in (path, path / "checkpoints"):
        kind = "torch.distributed.checkpoint" * (folder / ".metadata").exists()
        require(not kind, f"{folder} was written by {kind}, which is a pickle that can execute; give a folder of mmfm")
    require(not path.is_file(), f"{path} is a file, and files such as .ckpt can execute; give the folder of a run")
