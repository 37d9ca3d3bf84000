"""torchaudio: what a bundle of a speech encoder says of its model and of its file."""

from typing import Any

from torchaudio.pipelines import Wav2Vec2Bundle


def described(bundle: Wav2Vec2Bundle) -> dict[str, Any]:
    """The kind of model, the arguments of its factory, and whether each clip is normalised."""
    return {"model": bundle._model_type, "params": bundle._params, "normalize": bundle._normalize_waveform}


def file_of(bundle: Wav2Vec2Bundle) -> str:
    """The name of its file of weights."""
    return bundle._path.rpartition("/")[2]
