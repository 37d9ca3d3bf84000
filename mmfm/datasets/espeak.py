"""espeak-ng from the `espeakng_loader` wheel, by ctypes: the library and its voices come with pip.

A voice is an accent and a variant, "en-us+f3". The library keeps a flutter and a noise state per process that no call
resets, so a sound depends on what was said before it: `python -m mmfm.datasets.espeak` says a list from a fresh
start, and imports little, because it is started often.
"""

import ctypes
import json
import os
import struct
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import espeakng_loader
import numpy as np
from jaxtyping import Int16

from mmfm.config import UserError, require

SEED = 1  # of espeak-ng's noise; without it the library seeds itself from the clock
HEAD = struct.Struct(">II")  # of an answer: the rate in Hz, and how many bytes of 16-bit samples follow

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1  # speak_lib.h: AUDIO_OUTPUT_, espeakINITIALIZE_, espeakCHARS_
_RATE, _PITCH = 1, 3  # speak_lib.h: espeak_PARAMETER
_LONGEST_PATH = 140  # the library cuts the path of its data at 160 bytes, and then looks elsewhere
_INT, _UINT, _BYTES = ctypes.c_int, ctypes.c_uint, ctypes.c_char_p
_CALLBACK = ctypes.CFUNCTYPE(_INT, ctypes.POINTER(ctypes.c_short), _INT, ctypes.c_void_p)
_SPAN = (ctypes.c_size_t, _UINT, _INT, _UINT)  # the bytes of a text; from where to where it is said
_PROTOTYPES = {
    "espeak_Initialize": (_INT, (_INT, _INT, _BYTES, _INT)),
    "espeak_Info": (_BYTES, (ctypes.POINTER(_BYTES),)),
    "espeak_SetSynthCallback": (None, (_CALLBACK,)),
    "espeak_SetVoiceByName": (_INT, (_BYTES,)),
    "espeak_SetParameter": (_INT, (_INT, _INT, _INT)),
    "espeak_ng_SetRandSeed": (_INT, (ctypes.c_long,)),
    "espeak_Synth": (_INT, (_BYTES, *_SPAN, _UINT, ctypes.POINTER(_UINT), ctypes.c_void_p)),
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
    return tuple(sorted(path.name for path in (_data() / "voices" / "!v").iterdir()))


def version() -> str:
    return _library().espeak_Info(None).decode()


class Speaker:
    """espeak-ng in this process. One at a time: the library is one global state."""

    def __init__(self) -> None:
        self._library, self._variants = _library(), frozenset(variants())
        self._pieces: list[bytes] = []
        self._callback = _CALLBACK(self._collect)  # kept: the library holds only its address
        with ExitStack() as stack:
            data = _near(_data(), stack)
            self.rate_hz: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
            self._links = stack.pop_all()
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(SEED)

    def __enter__(self) -> "Speaker":
        return self

    def __exit__(self, *_: object) -> None:
        self._links.close()

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int | None) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, utterance: Utterance) -> Int16[np.ndarray, " samples"]:
        """The sound at `rate_hz`. UserError for a voice that does not exist, or for one that gives no sound."""
        _, plus, variant = utterance.voice.partition("+")
        known = not plus or variant in self._variants  # to the library an unknown one is no error: it speaks without
        found = known and self._library.espeak_SetVoiceByName(utterance.voice.encode()) == 0
        require(found, f"espeak-ng has no voice {utterance.voice!r}; name an accent and a variant, such as en-us+f3")
        self._library.espeak_SetParameter(_RATE, utterance.rate_wpm, 0)
        self._library.espeak_SetParameter(_PITCH, utterance.pitch, 0)
        self._pieces.clear()
        text = utterance.text.encode()
        status = self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        sound = np.frombuffer(b"".join(self._pieces), dtype=np.int16)
        require(
            status == 0 and bool(sound.any()),
            f"espeak-ng gives no sound for {utterance.text!r} by {utterance.voice} ({status=}); name another voice",
        )
        return sound


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """A line of JSON in, the fields of an Utterance; HEAD and the samples out."""
    with Speaker() as speaker:
        for line in requests:
            sound = speaker.say(Utterance(**json.loads(line))).tobytes()
            answers.write(HEAD.pack(speaker.rate_hz, len(sound)) + sound)
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


def _data() -> Path:
    """Where the voices are. Without them the library reports success, and goes on with what it loaded before."""
    try:
        data = Path(espeakng_loader.get_data_path())
    except RuntimeError as why:  # the wheel's own check
        raise UserError(f"espeak-ng has no voices ({why}); reinstall espeakng-loader") from None
    require((data / "phontab").is_file(), f"espeak-ng finds no voices in {data}; reinstall espeakng-loader")
    return data


def _near(data: Path, stack: ExitStack) -> Path:
    """`data`, or a link to it where its path is too long for the library."""
    if len(os.fsencode(data)) <= _LONGEST_PATH:
        return data
    link = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="espeak-"))) / data.name
    require(len(os.fsencode(link)) <= _LONGEST_PATH, f"{link} is too long for espeak-ng; set TMPDIR to a shorter path")
    link.symlink_to(data, target_is_directory=True)
    return link


if __name__ == "__main__":
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except UserError as why:
        sys.exit(str(why))
