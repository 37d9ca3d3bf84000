"""Sound: bytes of WAV, FLAC, OGG or MP3 at any rate -> mono float32 at the model's rate. libsndfile decodes.

scipy's polyphase filter resamples: on clips of seconds it is far quicker than torchaudio's functional form.
"""

import functools
import io
import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from scipy.signal import resample_poly
from torch import Tensor

from mmfm.config import UserError
from mmfm.inputs import BadSample
from mmfm.inputs.containers import check_mp3, check_ogg, check_wav

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
RATES_HZ = (1_000, 384_000)
MAX_CHANNELS = 32
PEAK = 65_536.0  # 16-bit integers stored as floats still pass; larger values overflow a power spectrum
ZERO_CROSSINGS = 10  # of the filter, on either side


def decode_audio(data: bytes, *, rate_hz: int, max_seconds: float) -> Float[Tensor, " samples"]:
    """The mean of the channels, resampled to `rate_hz`; ceil(frames * rate_hz / own rate) samples.

    Raises BadSample when `data` is no whole clip, lasts longer than `max_seconds` (by its header, before decoding),
    holds no samples, or holds values that are not finite.
    """
    if not data:
        raise BadSample("audio_empty", "the sound is empty (0 bytes)")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, max_seconds)
            exact = _check_whole(file, data)
            wave = file.read(file.frames, dtype="float32", always_2d=True)
            own_hz, frames = file.samplerate, file.frames
    except soundfile.LibsndfileError as why:
        reason = " ".join(why.error_string.removeprefix("Error : ").split()).rstrip(".")
        raise BadSample(
            "audio_damaged", f"no readable WAV, FLAC, OGG or MP3 sound ({reason}); it may be cut or damaged"
        ) from None
    if len(wave) < frames and (exact or len(wave) == 0):
        raise BadSample("audio_cut", f"the sound is cut: {frames} samples announced, {len(wave)} there; copy it again")
    _check_values(wave)
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
    return torch.from_numpy(resample(mono, own_hz, rate_hz))


def load_audio(path: str | Path, *, rate_hz: int, max_seconds: float) -> Float[Tensor, " samples"]:
    """`decode_audio` of a file of the user; every error names the file."""
    try:
        return decode_audio(Path(path).read_bytes(), rate_hz=rate_hz, max_seconds=max_seconds)
    except BadSample as why:
        raise BadSample(why.code, f"{path}: {why}") from None
    except OSError as why:
        raise UserError(f"{path}: {why.strerror}; give the path of a WAV, FLAC, OGG or MP3 file") from None


def resample(wave: Float[np.ndarray, " n"], from_hz: int, to_hz: int) -> Float[np.ndarray, " m"]:
    """Band-limited change of rate; m = ceil(n * to_hz / from_hz)."""
    if from_hz == to_hz:
        return np.ascontiguousarray(wave, dtype=np.float32)
    common = math.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    return resample_poly(wave, up, down, window=_low_pass(max(up, down))).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _low_pass(ratio: int) -> Float[np.ndarray, " taps"]:
    """The filter that resample_poly would design anew for each clip: a sinc under a Kaiser window, of sum 1."""
    side = ZERO_CROSSINGS * ratio
    taps = np.sinc(np.arange(-side, side + 1) / ratio) * np.kaiser(2 * side + 1, 5.0)
    return (taps / taps.sum()).astype(np.float32)


def _check_header(file: soundfile.SoundFile, max_seconds: float) -> None:
    low, high = RATES_HZ
    if file.format not in FORMATS:
        raise BadSample("audio_format", f"the sound is {file.format}; convert it to WAV, FLAC, OGG or MP3")
    if not low <= file.samplerate <= high:
        raise BadSample(
            "audio_rate",
            f"the sound has {file.samplerate} samples a second, outside {low} to {high}; resample it first",
        )
    if file.channels > MAX_CHANNELS:
        raise BadSample(
            "audio_channels", f"the sound has {file.channels} channels, over {MAX_CHANNELS}; mix it down first"
        )
    if file.frames > max_seconds * file.samplerate:
        seconds = file.frames / file.samplerate
        raise BadSample(
            "audio_too_long",
            f"the sound lasts {seconds:.2f} s, over max_seconds={max_seconds:g}; cut it or raise the limit",
        )


def _check_whole(file: soundfile.SoundFile, data: bytes) -> bool:
    """Whether `file.frames` is exact; an MP3 that does not state its length has it estimated."""
    exact = True
    if file.format in ("WAV", "WAVEX"):
        check_wav(data)
    if file.format == "OGG":
        check_ogg(data)
    if file.format == "MP3":
        exact = check_mp3(data, file.samplerate)
    if file.frames == 0:
        raise BadSample("audio_no_samples", "the sound holds 0 samples; leave it out or record it again")
    return exact


def _check_values(wave: Float[np.ndarray, "frames channels"]) -> None:
    peak = float(np.abs(wave).max())  # NaN where any value is
    if not peak <= PEAK:
        raise BadSample(
            "audio_not_finite",
            f"the sound holds the value {peak:g}; samples must be finite numbers, usually within -1 and 1",
        )
