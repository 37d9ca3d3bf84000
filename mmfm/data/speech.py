"""English spoken by espeak-ng, from the `espeakng_loader` wheel by ctypes: the library and its data come with pip.

A voice is an accent and a variant, "en-us+f3". The library keeps a flutter and a noise state per process that no call
resets, so a clip depends on what was said before it. `speak` therefore gives each sequence a fresh process: the same
list of utterances gives the same bytes, whatever this process has said, and a crash in C ends in one line.
"""

import ctypes
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import espeakng_loader
import numpy as np
import soundfile
from jaxtyping import Float, Int16
from scipy.signal import resample_poly

from mmfm.config import UserError, require

RATE_HZ = 16_000  # of every clip; espeak-ng speaks at 22,050
QUIET, EDGE_SECONDS = 0.01, 0.03  # below this part of the peak is silence, of which this much is left at each end
SEED = 1  # of espeak-ng's noise; without it the library seeds itself from the clock
SEQUENCES = 2  # part of the result: clip i belongs to sequence i % SEQUENCES, each a process of its own

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1  # speak_lib.h: AUDIO_OUTPUT_, espeakINITIALIZE_, espeakCHARS_
_RATE, _PITCH = 1, 3  # speak_lib.h: espeak_PARAMETER
_LONGEST_PATH = 140  # the library cuts the path of its data at 160 bytes, and then looks elsewhere
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_PROTOTYPES = {
    "espeak_Initialize": (ctypes.c_int, [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]),
    "espeak_Info": (ctypes.c_char_p, [ctypes.POINTER(ctypes.c_char_p)]),
    "espeak_SetSynthCallback": (None, [_CALLBACK]),
    "espeak_SetVoiceByName": (ctypes.c_int, [ctypes.c_char_p]),
    "espeak_SetParameter": (ctypes.c_int, [ctypes.c_int, ctypes.c_int, ctypes.c_int]),
    "espeak_ng_SetRandSeed": (ctypes.c_int, [ctypes.c_long]),
    "espeak_Synth": (
        ctypes.c_int,
        [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p),
        ],
    ),
}


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """`text` said by `voice`. rate_wpm: words a minute, 175 is usual; pitch: 0 to 99, 50 is the voice's own."""

    text: str
    voice: str
    rate_wpm: int = 175
    pitch: int = 50


def variants() -> tuple[str, ...]:
    """The voice variants in the wheel, sorted: the part of a voice after the "+"."""
    return tuple(sorted(path.name for path in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir()))


def version() -> str:
    return _library().espeak_Info(None).decode()


class Speaker:
    """espeak-ng in this process. One at a time: the library is one global state."""

    def __init__(self) -> None:
        self._library, self._variants = _library(), frozenset(variants())
        self._pieces: list[bytes] = []
        self._callback = _CALLBACK(self._collect)  # kept: the library holds only its address
        with ExitStack() as stack:
            data = _short_path(Path(espeakng_loader.get_data_path()), stack)
            self.rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
            self._folder = stack.pop_all()
        require(
            self._library.espeak_SetVoiceByName(b"en") == 0,
            f"espeak-ng finds no voices in {data}; reinstall espeakng-loader",
        )
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(SEED)

    def __enter__(self) -> "Speaker":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.close()

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int | None) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, utterance: Utterance) -> Int16[np.ndarray, " samples"]:
        """The sound at `rate_hz`. UserError for a voice that does not exist, or for one that gives no sound."""
        variant = utterance.voice.partition("+")[2]  # a wrong variant is no error to the library: it speaks without
        known = not variant or variant in self._variants
        known = known and self._library.espeak_SetVoiceByName(utterance.voice.encode()) == 0
        require(known, f"espeak-ng has no voice {utterance.voice!r}; name an accent and a variant, such as en-us+f3")
        self._library.espeak_SetParameter(_RATE, utterance.rate_wpm, 0)
        self._library.espeak_SetParameter(_PITCH, utterance.pitch, 0)
        self._pieces.clear()
        text = utterance.text.encode()
        status = self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        sound = np.frombuffer(b"".join(self._pieces), dtype=np.int16)
        require(
            status == 0 and bool(sound.any()),
            f"espeak-ng gave no sound (status {status}) for {utterance.text!r} by {utterance.voice!r}; leave that voice out",
        )
        return sound


def trim(sound: Int16[np.ndarray, " samples"], rate_hz: int) -> Int16[np.ndarray, " kept"]:
    """Without the silence before and after, but for EDGE_SECONDS of it."""
    level = np.abs(sound.astype(np.int32))
    loud = np.flatnonzero(level > QUIET * level.max())
    edge = round(EDGE_SECONDS * rate_hz)
    return sound[max(0, int(loud[0]) - edge) : int(loud[-1]) + 1 + edge]


def resample(sound: Int16[np.ndarray, " samples"], rate_hz: int) -> Int16[np.ndarray, " resampled"]:
    """To RATE_HZ, once, by scipy's polyphase filter (for short clips far faster than torchaudio's functional form)."""
    common = int(np.gcd(rate_hz, RATE_HZ))
    smooth: Float[np.ndarray, " resampled"] = resample_poly(
        sound.astype(np.float64), RATE_HZ // common, rate_hz // common
    )
    return np.clip(np.rint(smooth), -32_768, 32_767).astype(np.int16)


def to_flac(sound: Int16[np.ndarray, " samples"]) -> bytes:
    """16-bit mono FLAC at RATE_HZ."""
    file = io.BytesIO()
    soundfile.write(file, sound, RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def speak(utterances: Sequence[Utterance]) -> Iterator[bytes]:
    """Each utterance trimmed, at RATE_HZ, as FLAC, in order; spoken by SEQUENCES fresh processes side by side."""
    with ExitStack() as stack:
        mouths = [stack.enter_context(_mouth(utterances[i::SEQUENCES])) for i in range(SEQUENCES)]
        for index in range(len(utterances)):
            yield next(mouths[index % SEQUENCES])


@contextmanager
def _mouth(utterances: Sequence[Utterance]) -> Iterator[Iterator[bytes]]:
    """A process that says `utterances`; it cannot outlive the block."""
    command = [sys.executable, "-P", "-m", "mmfm.data.speech"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with tempfile.TemporaryFile() as requests, tempfile.TemporaryFile() as complaints:
        requests.write("".join(json.dumps(asdict(utterance)) + "\n" for utterance in utterances).encode())
        requests.seek(0)
        with subprocess.Popen(
            command, stdin=requests, stdout=subprocess.PIPE, stderr=complaints, env=environment
        ) as process:
            assert process.stdout is not None
            try:
                yield _read(process.stdout, complaints)
            finally:
                process.kill()


def _read(answers: BinaryIO, complaints: BinaryIO) -> Iterator[bytes]:
    while True:
        head = answers.read(4)
        body = answers.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""
        if not body:
            complaints.seek(0)
            why = complaints.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise UserError(f"espeak-ng stopped before its last clip: {why[-1]}")
        yield body


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The other end of `_mouth`: a line of JSON in, a length and a FLAC file out."""
    with Speaker() as speaker:
        for line in requests:
            sound = trim(speaker.say(Utterance(**json.loads(line))), speaker.rate_hz)
            clip = to_flac(resample(sound, speaker.rate_hz))
            answers.write(struct.pack(">I", len(clip)) + clip)
            answers.flush()


def _library() -> ctypes.CDLL:
    path = espeakng_loader.get_library_path()
    try:
        library = ctypes.CDLL(path)
    except OSError as why:
        raise UserError(
            f"cannot load espeak-ng from {path} ({why}); reinstall espeakng-loader for this platform"
        ) from None
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _short_path(data: Path, stack: ExitStack) -> Path:
    """`data`, or a link to it where its path is too long for the library."""
    if len(os.fsencode(data)) <= _LONGEST_PATH:
        return data
    link = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="espeak-"))) / data.name
    link.symlink_to(data, target_is_directory=True)
    return link


if __name__ == "__main__":
    try:
        _serve(sys.stdin.buffer, sys.stdout.buffer)
    except UserError as why:
        sys.exit(str(why))
