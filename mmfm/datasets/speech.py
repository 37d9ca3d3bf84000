"""Clips of speech: what espeak-ng says, trimmed, at 16 kHz, as FLAC. The same list gives the same bytes.

A sound depends on what the same process said before it (see espeak.py), so `speak` gives every list fresh processes:
whatever this one has said does not matter, and a crash in C ends in one line.
"""

import functools
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from jaxtyping import Float, Int16
from scipy.signal import firwin, resample_poly

from mmfm.config import UserError
from mmfm.datasets.espeak import HEAD, Utterance

RATE_HZ = 16_000  # of every clip; espeak-ng speaks at 22,050
QUIET, EDGE_SECONDS = 0.01, 0.03  # below this part of the peak is silence, of which this much is left at each end
SEQUENCES = 2  # part of the result: clip i belongs to sequence i % SEQUENCES, each a process of its own


def trim(sound: Int16[np.ndarray, " samples"], rate_hz: int) -> Int16[np.ndarray, " kept"]:
    """Without the silence before and after, but for EDGE_SECONDS of it."""
    level = np.abs(sound.astype(np.int32))
    loud = np.flatnonzero(level > QUIET * level.max())
    edge = round(EDGE_SECONDS * rate_hz)
    return sound[max(0, int(loud[0]) - edge) : int(loud[-1]) + 1 + edge]


def resample(sound: Int16[np.ndarray, " samples"], rate_hz: int) -> Int16[np.ndarray, " resampled"]:
    """To RATE_HZ, once, by scipy's polyphase filter (for short clips far faster than torchaudio's functional form)."""
    common = math.gcd(rate_hz, RATE_HZ)
    up, down = RATE_HZ // common, rate_hz // common
    smooth = resample_poly(sound.astype(np.float64), up, down, window=_low_pass(max(up, down)))
    return np.clip(np.rint(smooth), -32_768, 32_767).astype(np.int16)


@functools.cache
def _low_pass(factor: int) -> Float[np.ndarray, " taps"]:
    """resample_poly's own default filter; it would design it anew for every clip, which takes longer than its use."""
    kaiser: Any = ("kaiser", 5.0)  # scipy's own annotation knows only names
    return np.asarray(firwin(20 * factor + 1, 1 / factor, window=kaiser))


def to_flac(sound: Int16[np.ndarray, " samples"]) -> bytes:
    """16-bit mono FLAC at RATE_HZ."""
    file = io.BytesIO()
    soundfile.write(file, sound, RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def speak(utterances: Sequence[Utterance]) -> Generator[bytes, None, None]:
    """Each utterance trimmed, at RATE_HZ, as FLAC, in order; spoken by SEQUENCES fresh processes side by side."""
    with ExitStack() as stack:
        mouths = [stack.enter_context(_mouth(utterances[i::SEQUENCES])) for i in range(SEQUENCES)]
        for index in range(len(utterances)):
            sound, rate_hz = next(mouths[index % SEQUENCES])
            yield to_flac(resample(trim(sound, rate_hz), rate_hz))


@contextmanager
def _mouth(utterances: Sequence[Utterance]) -> Iterator[Iterator[tuple[np.ndarray, int]]]:
    """A process that says `utterances`; it cannot outlive the block."""
    command = [sys.executable, "-P", "-m", "mmfm.datasets.espeak"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with tempfile.TemporaryFile() as requests, tempfile.TemporaryFile() as complaints:
        requests.write("".join(json.dumps(asdict(utterance)) + "\n" for utterance in utterances).encode())
        requests.seek(0)
        pipes = {"stdin": requests, "stdout": subprocess.PIPE, "stderr": complaints}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            assert process.stdout is not None
            try:
                yield _read(process.stdout, complaints)
            finally:
                process.kill()


def _read(answers: IO[bytes], complaints: IO[bytes]) -> Iterator[tuple[np.ndarray, int]]:
    """Each sound and its rate in Hz. UserError with the process's last word if it ends before the caller does."""
    while True:
        head = answers.read(HEAD.size)
        rate_hz, size = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
        body = answers.read(size)
        if not body or len(body) < size:
            complaints.seek(0)
            why = complaints.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(why) if line.strip()), "it gave no reason")
            raise UserError(f"espeak-ng stopped before its last clip: {last}")
        yield np.frombuffer(body, dtype=np.int16), rate_hz
