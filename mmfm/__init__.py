"""mmfm: one model that reads and writes text, images and audio. `mmfm.load(RUN)` gives it back from a run's folder."""

import os

os.environ.setdefault("WDS_SECURE", "1")  # webdataset then refuses pickles and `pipe:` addresses

__version__ = "0.1.0"


def load(run: str, step: int | None = None):
    """The trained model of a run's folder, ready to encode and write; `step` picks a checkpoint, else the last."""
    from mmfm.checkpoint import load_model  # torch is imported here, so that `import mmfm` and `mmfm --help` stay fast

    return load_model(run, step)
