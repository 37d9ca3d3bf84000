"""The folder of trained judges: made beside its place, under its own name only when whole."""

import json
from pathlib import Path

from mmfm.config import require
from mmfm.datasets.folder import PARTIAL, complete, prints
from mmfm.evals.judges.speech_train import train_speech_judge
from mmfm.runtime.files import output_folder

FORMAT = 2  # raised when the same arguments give other bytes


def make(folder: Path, *, seed: int = 0, force: bool = False, progress: bool = True) -> None:
    """Train the judges into `folder`, which must be new or empty, or hold just these: then nothing is done.

    force: a folder of judges is made again; a folder of anything else is never touched.
    """
    wanted = {"seed": seed, "format": FORMAT}
    if force and folder.is_dir() and any(folder.iterdir()):
        require((folder / "judges.json").is_file(), f"{folder} is no folder of judges; --force replaces nothing else")
    elif complete(folder, "judges", wanted):
        print(f"{folder} is complete already; nothing to do (--force trains again)")
        return
    with output_folder(folder, PARTIAL) as partial:
        train_speech_judge(partial, seed, progress)
        manifest = {"arguments": wanted, "files": prints(partial)}
        text = json.dumps(manifest, indent=1) + "\n"
        (partial / "judges.json").write_text(text, encoding="utf-8", newline="\n")
    print(f"{folder} is complete")
