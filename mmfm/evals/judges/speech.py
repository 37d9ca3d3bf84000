"""A small recogniser of number words: log-mel frames, convolutions, a recurrent network and CTC over whole words.

It shares nothing with the towers. Its output is open: any sequence of number words, with `OTHER` where something else
is said, so that what it hears need be no number's name. `speech_train` makes its weights.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchaudio.functional import melscale_fbanks

from mmfm.config import UserError, require
from mmfm.data.sample import Sample, meta_of
from mmfm.evals.judges.contract import OTHER, RATE_HZ, WORDS, HeldOut, heard, joined
from mmfm.preprocessing import BadSample

CLASSES = ("", *WORDS, OTHER)  # the first is CTC's blank
BINS, WINDOW, HOP = 64, 400, 160  # mel bands; samples
LOW_HZ, HIGH_HZ = 60.0, 7_600.0
WIDTH, DEPTH, DROPOUT, STRIDE = 128, 3, 0.1, 4
FLOOR = 1e-6  # of the power, beside the clip's loudest
AT_ONCE = 64


class Recogniser(nn.Module):
    """Waves to log-probabilities of CLASSES at every 40 ms."""

    def __init__(self) -> None:
        super().__init__()
        banks = melscale_fbanks(WINDOW // 2 + 1, LOW_HZ, HIGH_HZ, BINS, RATE_HZ)
        self.banks = nn.Buffer(banks, persistent=False)
        self.window = nn.Buffer(torch.hann_window(WINDOW), persistent=False)
        self.first = nn.Conv1d(BINS, WIDTH, 5, stride=2, padding=2)
        self.second = nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2)
        self.deeper = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2) for _ in range(DEPTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(DEPTH))
        self.recur = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(DROPOUT)
        self.head = nn.Linear(2 * WIDTH, len(CLASSES))

    def forward(
        self, waves: Float[Tensor, "n samples"], lengths: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n time classes"], Int[Tensor, " n"]]:
        """Log-probabilities, and how many steps of each row are real. lengths: samples, at least 1."""
        frames, keep = self.frames(waves, lengths)
        x = F.gelu(self.first(frames.transpose(1, 2))) * keep[:, None, ::2]
        real, steps = keep[:, ::STRIDE, None], keep[:, ::STRIDE].sum(1)
        x = F.gelu(self.second(x)).transpose(1, 2)
        for norm, layer in zip(self.norms, self.deeper, strict=True):
            x = x + self.drop(F.gelu(layer((norm(x) * real).transpose(1, 2)))).transpose(1, 2)
        packed = pack_padded_sequence(self.drop(x), steps.cpu(), True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.recur(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.head(self.drop(y)).log_softmax(-1), steps

    def frames(
        self, waves: Float[Tensor, "n samples"], lengths: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n time bins"], Tensor]:
        """Log-mel frames of mean 0 and variance 1 in each row, so that loudness does not matter; and which are real."""
        spectra = torch.stft(waves, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True)
        power = spectra.abs().square().transpose(1, 2) @ self.banks
        keep = torch.arange(power.shape[1], device=waves.device) < (1 + lengths // HOP)[:, None]
        real = keep[..., None].to(power.dtype)
        logs = (power + FLOOR * (power * real).amax((1, 2), keepdim=True) + 1e-10).log()
        count = real.sum(1, keepdim=True) * BINS
        middle = (logs * real).sum((1, 2), keepdim=True) / count
        spread = (((logs - middle) * real).square().sum((1, 2), keepdim=True) / count).sqrt()
        return (logs - middle) / (spread + 1e-3) * real, keep


def read_off(scores: Float[Tensor, "n time classes"], steps: Int[Tensor, " n"]) -> list[str]:
    """The best class of every step, repetitions and blanks taken out (Graves et al. 2006, section 3.2)."""
    best = scores.argmax(-1)
    rows = [[kind for kind, _ in groupby(row[:real].tolist())] for row, real in zip(best, steps.tolist(), strict=True)]
    return [joined([CLASSES[kind] for kind in row if kind]) for row in rows]


def padded(sounds: Sequence[Float[Tensor, " _"]]) -> tuple[Float[Tensor, "n samples"], Int[Tensor, " n"]]:
    """Rows of zeros after each sound's end, and the lengths."""
    return nn.utils.rnn.pad_sequence(list(sounds), batch_first=True), torch.tensor([len(sound) for sound in sounds])


class Speech:
    """The recogniser that `mmfm data judges FOLDER` trained."""

    name: str = "speech"
    of: Literal["image", "audio"] = "audio"

    def __init__(self, network: Recogniser, about: Mapping[str, Any] | None = None) -> None:
        """about: what its folder says of it."""
        self.network, self.about = network.eval(), dict(about or {})

    @property
    def learned_from(self) -> str:
        return f"{len(self.variants)} variants of voices of espeak-ng, those of the test splits of `numbers`"

    @property
    def variants(self) -> frozenset[str]:
        return frozenset(map(str, self.about.get("variants", ())))

    def met(self, sample: Sample) -> bool:
        """By the variant of the voice, which the .json of the data set tells."""
        try:
            voice = meta_of(sample).get("voice")
        except BadSample:
            return False
        return isinstance(voice, str) and voice.rpartition("+")[2] in self.variants

    def held_out(self) -> HeldOut | None:
        """As it was measured when the folder was made."""
        found = self.about.get("held_out")
        known = isinstance(found, dict) and all(isinstance(found.get(key), int) for key in ("right", "of"))
        return HeldOut(on=str(found.get("on", "")), right=found["right"], of=found["of"]) if found and known else None

    def read(self, things: Sequence[Tensor], rate_hz: int = 0) -> list[str]:
        """Number words, "?" for a stretch of anything else, "" for silence. A sound is read alike in any company."""
        sounds = [torch.from_numpy(sound) for sound in heard(things, rate_hz)]
        read: list[str] = []
        for start in range(0, len(sounds), AT_ONCE):
            with torch.inference_mode():
                read += read_off(*self.network(*padded(sounds[start : start + AT_ONCE])))
        return read


def load(folder: Path) -> Speech:
    """The judge of a folder.

    Errors:
        UserError: the folder has no whole recogniser, or one of other words.
    """
    weights, about = folder / "speech.safetensors", folder / "speech.json"
    remedy = f"make it with: mmfm data judges {folder}"
    require(weights.is_file() and about.is_file(), f"{folder} holds no recogniser of speech; {remedy}")
    network, again = Recogniser(), f"{remedy} --force"
    try:
        told, found = json.loads(about.read_text("utf-8")), load_file(weights)
        classes = told["classes"]
    except (SafetensorError, ValueError, LookupError, TypeError) as why:
        raise UserError(f"the recogniser in {folder} is damaged ({type(why).__name__}); {again}") from why
    own = {name: value.shape for name, value in network.state_dict().items()}
    same = tuple(classes) == CLASSES and own == {name: value.shape for name, value in found.items()}
    require(same, f"the recogniser in {folder} is another than the one that is read here; {again}")
    network.load_state_dict(found)
    return Speech(network, told)
