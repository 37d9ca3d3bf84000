"""Who speaks: vectors of voices by the encoder of the wheel `resemblyzer`, so that a kept voice can be measured.

Three LSTMs over 40 mel bands, trained to tell speakers apart (GE2E, Wan et al., arXiv 1710.10467). None of the wheel's
code is imported. Its file is a pickle of tensors; torch's reader for weights alone, which timm calls, executes nothing
of it. The wheel also drops silence with a detector of its own; here sounds are taken as they are.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from mmfm.config import UserError, require
from mmfm.evals.judges.contract import RATE_HZ, heard
from mmfm.evals.metrics import Score, mean

BINS, WIDTH, LAYERS, WINDOW, HOP = 40, 256, 3, 400, 160
FRAMES, STEP, COVERED = 160, 77, 0.75  # of a part; from one to the next; how much of the last must be real
LOUDNESS = 10 ** (-30 / 20)  # root mean square; quieter sounds are raised to it
UNUSED = {"similarity_weight", "similarity_bias"}  # of the loss that it was trained with
INSTALL = "pip install --no-deps resemblyzer"
NEARER = 0.9  # of the other voices must be farther than the prompt's


class VoiceEncoder(nn.Module):
    """Mel powers of parts of FRAMES frames to unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BINS, WIDTH, LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        banks = melscale_fbanks(WINDOW // 2 + 1, 0.0, RATE_HZ / 2, BINS, RATE_HZ, norm="slaney", mel_scale="slaney")
        self.banks = nn.Buffer(banks, persistent=False)
        self.window = nn.Buffer(torch.hann_window(WINDOW), persistent=False)

    def forward(self, mels: Float[Tensor, "n frames bins"]) -> Float[Tensor, "n width"]:
        _, (last, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(last[-1])), dim=1)

    def voice(self, sound: Float[Tensor, " samples"]) -> Float[Tensor, " width"]:
        """The mean over parts of 1.6 s, of length one. A shorter sound is followed by silence, as the wheel's are."""
        loud = sound.square().mean().sqrt()
        sound = sound * (LOUDNESS / loud.clamp(min=1e-8)).clamp(min=1.0)
        firsts = starts(len(sound))
        whole = F.pad(sound, (0, max(0, (firsts[-1] + FRAMES) * HOP - len(sound))))
        spectra = torch.stft(whole, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True)
        mels = spectra.abs().square().T @ self.banks
        return F.normalize(self(torch.stack([mels[first : first + FRAMES] for first in firsts])).mean(0), dim=0)


def starts(samples: int) -> list[int]:
    """The first frames of the parts of a sound; a last one that is less than COVERED real is left out."""
    frames = -(-(samples + 1) // HOP)
    firsts = list(range(0, max(1, frames - FRAMES + STEP + 1), STEP))
    covered = (samples - firsts[-1] * HOP) / (FRAMES * HOP)
    return firsts[:-1] if covered < COVERED and len(firsts) > 1 else firsts


def weights() -> Path:
    """The wheel's file.

    Errors:
        UserError: the wheel is not installed.
    """
    found = next(
        (path for entry in sys.path if (path := Path(entry) / "resemblyzer" / "pretrained.pt").is_file()), None
    )
    if found is None:
        raise UserError(f"the package resemblyzer, which tells voices apart, is not installed; {INSTALL}")
    return found


@functools.cache
def _encoder(path: Path) -> VoiceEncoder:
    from mmfm.compat.timm import load_state_dict

    read = load_state_dict(str(path), use_ema=False, device="cpu", weights_only=True)["model_state"]
    encoder = VoiceEncoder()
    own = encoder.state_dict()
    same = read.keys() == own.keys() | UNUSED and all(read[name].shape == own[name].shape for name in own)
    require(same, f"{path.name} holds another network than resemblyzer 0.1.4; {INSTALL}==0.1.4")
    encoder.load_state_dict({name: read[name] for name in own})
    return encoder.eval().requires_grad_(False)


def speaker(waves: Sequence[Float[Tensor, " _"]], rate_hz: int) -> Float[Tensor, "n 256"]:
    """A unit vector of each sound's voice; the products of two are 1 for the same voice and never negative.

    Errors:
        UserError: the wheel is missing; an empty sound, one that is not finite, or no rate.
    """
    encoder, sounds = _encoder(weights()), heard(waves, rate_hz)
    with torch.no_grad():
        made = [encoder.voice(torch.from_numpy(sound)) for sound in sounds]
    return torch.stack(made) if made else torch.zeros(0, WIDTH)


def nearer(
    prompts: Float[Tensor, "n d"],
    answers: Float[Tensor, "n d"],
    others: Float[Tensor, "m d"],
    keep: Bool[Tensor, "n m"],
) -> Float[Tensor, " n"]:
    """The share of other voices that are farther from each answer than its prompt's is; ties count half.

    keep: which of the others count for a row, such as those of another voice than the prompt's; at least one.
    """
    require(bool(keep.any(1).all()), "a row has no other voice to be compared with; give others that are not its own")
    own, theirs = (answers * prompts).sum(1, keepdim=True), answers @ others.T
    won = (theirs < own).float() + 0.5 * (theirs == own).float()
    return (won * keep).sum(1) / keep.sum(1)


def same_speaker(task: str, found: Float[np.ndarray, " n"], items: Sequence[str] = ()) -> Score:
    """The share of answers whose voice is nearer to their prompt's than to NEARER of others (`nearer`)."""
    require(len(found) > 0, f"{task}: no voice was compared; a figure needs at least one answer")
    told = {"task": task, "metric": "speaker/nearer", "n": len(found), "chance": 1 - NEARER, "items": tuple(items)}
    return Score(**told, statistic=mean((found >= NEARER - 1e-6).astype(float)))
