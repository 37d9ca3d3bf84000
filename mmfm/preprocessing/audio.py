"""Sound: bytes of WAV, FLAC, OGG (Vorbis or Opus) or MP3 -> mono float32 at the model's rate. libsndfile decodes.

Of a longer recording a part can be read alone: libsndfile seeks, and what comes back equals that part of the whole.
scipy's polyphase filter resamples: on clips of seconds it is far quicker than torchaudio's functional form.
"""

import functools
import io
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from mmfm.config import UserError
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio_containers import check_flac, check_mp3, check_ogg, check_wav, with_length
from mmfm.preprocessing.file_formats import refusal

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
RATES_HZ = (1_000, 384_000)
MAX_CHANNELS = 32
PEAK = 65_536.0  # 16-bit integers stored as floats still pass; larger values overflow a power spectrum
ZERO_CROSSINGS = 10  # of the filter, on either side
MAX_PHASES = 8_192  # of the filter
COARSEST = 20  # steps in a second of the grid on which crops begin
LOSSY = ("OGG", "MP3")
WARM_UP_S = 0.5  # an MP3 frame may begin in any of the 13 before it: 0.47 s at 16 kHz and 8 kbit/s
BLOCK = 1 << 18  # frames that are read at once
MOST_FRAMES = 6_000  # that a byte can stand for: FLAC's longest block of silence, 65,535 frames, has 11 bytes


class Part(NamedTuple):
    """What is read, in frames of the file: `frames` from `start`, of which the first `lead` only feed the filter.

    `samples` of the result are wanted, -1: all.
    """

    start: int
    frames: int
    lead: int = 0
    samples: int = -1


def decode_audio(
    data: bytes, *, rate_hz: int, max_seconds: float, crop_seconds: float = 0.0, where: float | None = None
) -> Float[Tensor, " samples"]:
    """The mean of the channels, resampled to `rate_hz`; ceil(frames * rate_hz / own rate) samples.

    `crop_seconds` above 0: of a longer clip, round(crop_seconds * rate_hz) samples that begin at the fraction `where`
    of what is possible, None: from the middle; nothing else is decoded. Raises BadSample when `data` is no whole clip,
    when what is to be decoded lasts longer than `max_seconds` (by the header, before decoding), when it holds no
    samples, or values that are not finite. A crop is not aware of damage elsewhere in the clip.
    """
    if not data:
        raise BadSample("audio_empty", "the sound is empty (0 bytes)")
    data = with_length(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, data)
            exact = _check_whole(file, data)
            part = _part(file.frames, file.samplerate, rate_hz, crop_seconds, where)
            seconds = part.frames / file.samplerate if part.samples < 0 else part.samples / rate_hz
            _check_length(min(seconds, file.frames / file.samplerate), max_seconds)
            wave, own_hz = _read_mono(file, part.start, part.frames), file.samplerate
    except soundfile.LibsndfileError as why:
        if told := refusal(data, "sound"):
            raise BadSample("audio_format", told) from None
        if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
            check_wav(data)  # of two that were joined libsndfile says something else
        reason = " ".join(why.error_string.removeprefix("Error : ").split()).rstrip(".")
        raise BadSample(
            "audio_damaged", f"no readable WAV, FLAC, OGG or MP3 sound ({reason}); it may be cut or damaged"
        ) from None
    if len(wave) < part.frames and (exact or len(wave) <= part.lead):
        raise BadSample(
            "audio_cut", f"the sound is cut: {part.frames} samples announced, {len(wave)} there; copy it again"
        )
    return torch.from_numpy(_trim(resample(wave, own_hz, rate_hz), part, int(part.lead * _ratio(own_hz, rate_hz))))


def load_audio(
    given: str | Path | bytes, *, rate_hz: int, max_seconds: float, crop_seconds: float = 0.0
) -> Float[Tensor, " samples"]:
    """`decode_audio` of a file of the user, which every error names, or of its bytes."""
    name = "the sound" if isinstance(given, bytes) else given
    try:
        data = given if isinstance(given, bytes) else Path(given).read_bytes()
        return decode_audio(data, rate_hz=rate_hz, max_seconds=max_seconds, crop_seconds=crop_seconds)
    except BadSample as why:
        raise BadSample(why.code, f"{name}: {why}") from None
    except OSError as why:
        raise UserError(f"{name}: {why.strerror}; give the path of a WAV, FLAC, OGG or MP3 file") from None


def resample(wave: Float[np.ndarray, " n"], from_hz: int, to_hz: int) -> Float[np.ndarray, " m"]:
    """Band-limited change of rate; m = ceil(n * to_hz / from_hz)."""
    if from_hz == to_hz:
        return np.ascontiguousarray(wave, dtype=np.float32)
    from scipy.signal import resample_poly  # slow to import, and many sets have the model's rate

    ratio = _ratio(from_hz, to_hz)
    up, down = ratio.numerator, ratio.denominator
    out = resample_poly(wave, up, down, window=_low_pass(max(up, down))).astype(np.float32)
    length = -(-len(wave) * to_hz // from_hz)
    return out[:length] if len(out) >= length else np.pad(out, (0, length - len(out)))


def _ratio(from_hz: int, to_hz: int) -> Fraction:
    """Exact for all usual rates. One such as 383,999 Hz would need a filter of millions of taps, seconds of work for a
    file of a few bytes; it is rounded to what MAX_PHASES can express, at most 0.02 % off."""
    exact = Fraction(to_hz, from_hz)
    if max(exact.numerator, exact.denominator) <= MAX_PHASES:
        return exact
    return exact.limit_denominator(max(1, int(MAX_PHASES * min(1.0, from_hz / to_hz))))


@functools.lru_cache(maxsize=16)
def _low_pass(ratio: int) -> Float[np.ndarray, " taps"]:
    """The filter that resample_poly would design anew for each clip: a sinc under a Kaiser window, of sum 1."""
    side = ZERO_CROSSINGS * ratio
    taps = np.sinc(np.arange(-side, side + 1) / ratio) * np.kaiser(2 * side + 1, 5.0)
    return (taps / taps.sum()).astype(np.float32)


def _part(frames: int, own_hz: int, rate_hz: int, crop_seconds: float, where: float | None) -> Part:
    """All of it, or a crop with what the filter reaches on either side, so that it equals a slice of the whole.

    For that it begins where frames and samples coincide, which at usual rates is every 10 ms or oftener; at others the
    crop is resampled from its own edges.
    """
    samples = round(crop_seconds * rate_hz)
    count = -(-samples * own_hz // rate_hz)
    if crop_seconds <= 0:
        return Part(0, frames)
    if frames <= count:
        return Part(0, frames, 0, samples)
    free = frames - count
    start = free // 2 if where is None else min(free, int(where * (free + 1)))
    grid, reach = _ratio(own_hz, rate_hz).denominator, -(-ZERO_CROSSINGS * max(own_hz, rate_hz) // rate_hz) + 1
    if own_hz == rate_hz or grid * COARSEST > own_hz:
        return Part(start, count, 0, samples)
    start -= start % grid
    lead = min(start, -(-reach // grid) * grid)
    return Part(start - lead, min(frames - start, count + reach) + lead, lead, samples)


def _trim(wave: Float[np.ndarray, " n"], part: Part, first: int) -> Float[np.ndarray, " m"]:
    return wave if part.samples < 0 else wave[first : first + part.samples].copy()


def _read_mono(file: soundfile.SoundFile, start: int, count: int) -> Float[np.ndarray, " n"]:
    """The mean of the channels; block by block, as many channels of a high rate would fill the memory."""
    blocks: list[Float[np.ndarray, " m"]] = []
    for at in range(start, start + count, BLOCK):
        wave = _read(file, at, min(BLOCK, start + count - at))
        if not len(wave):
            break
        _check_values(wave)
        blocks.append(wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _read(file: soundfile.SoundFile, at: int, count: int) -> Float[np.ndarray, "n channels"]:
    """A lossy frame may need those before it: they are decoded too, and dropped.

    In one read, as `soundfile` seeks after each: the next one starts with a decoder that has forgotten everything.
    """
    warm_up = min(at, int(WARM_UP_S * file.samplerate)) if file.format in LOSSY else 0
    if at:
        file.seek(at - warm_up)
    return file.read(warm_up + count, dtype="float32", always_2d=True)[warm_up:]


def _check_header(file: soundfile.SoundFile, data: bytes) -> None:
    low, high = RATES_HZ
    told = refusal(data, "sound") if file.format == "MP3" or file.format not in FORMATS else None
    if told is None and file.format not in FORMATS:
        told = f"the sound is {file.format}; convert it to WAV, FLAC, OGG or MP3"
    if told is not None:
        raise BadSample("audio_format", told)
    if not low <= file.samplerate <= high:
        raise BadSample(
            "audio_rate",
            f"the sound has {file.samplerate} samples a second, outside {low} to {high}; resample it first",
        )
    if file.channels > MAX_CHANNELS:
        raise BadSample(
            "audio_channels", f"the sound has {file.channels} channels, over {MAX_CHANNELS}; mix it down first"
        )


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise BadSample(
            "audio_too_long",
            f"the sound lasts {seconds:.2f} s, over max_seconds={max_seconds:g}; cut it or raise the limit",
        )


def _check_whole(file: soundfile.SoundFile, data: bytes) -> bool:
    """Whether `file.frames` is exact; an MP3 that does not state its length has it estimated."""
    exact = True
    if file.frames > MOST_FRAMES * len(data):
        said = f"the sound's header says that it lasts {file.frames / file.samplerate:.4g} s"
        raise BadSample("audio_length", f"{said}, which its {len(data)} bytes cannot hold; convert it to FLAC or WAV")
    if file.format in ("WAV", "WAVEX", "RF64"):
        check_wav(data)
    if file.format == "FLAC":
        check_flac(data, file.frames)
    if file.format == "OGG":
        check_ogg(data)
    if file.format == "MP3":
        exact = check_mp3(data, file.samplerate)
    if file.frames <= 0:
        raise BadSample("audio_no_samples", "the sound holds 0 samples; leave it out or record it again")
    return exact


def _check_values(wave: Float[np.ndarray, "frames channels"]) -> None:
    peak = float(np.abs(wave).max())  # NaN where any value is
    if not peak <= PEAK:
        raise BadSample(
            "audio_not_finite",
            f"the sound holds the value {peak:g}; samples must be finite numbers, usually within -1 and 1",
        )
