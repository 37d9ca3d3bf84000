"""What log-mel frames keep of speech, by the vocoder without weights: a bound on every codec of such frames.

Clips of the numbers data set become frames of several kinds and sound again, with nothing quantised between. Of each
kind: STOI, multi-scale spectral distance, and the processor's time for a second of sound. Beside it torchaudio's own
way back, InverseMelScale and GriffinLim, from the same powers. Values are medians of the clips.

    mmfm data numbers data/numbers
    python tools/bench_codec.py [--clips 100] [--out tools/bench_codec.json]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torchaudio
from measure import row, seconds, write_report
from torch import Tensor

from mmfm.config import Mel
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.evals.codec import sound_values
from mmfm.evals.split import spread
from mmfm.models.codecs.vocoder import ITERATIONS, MOMENTUM, GriffinLim
from mmfm.preprocessing.audio import decode_audio

RATE = 16_000
KINDS = [(25.0, 10.0, 80), (32.0, 10.0, 80), (32.0, 12.5, 80), (32.0, 16.0, 80), (50.0, 12.5, 80)]
KINDS += [(50.0, 12.5, 64), (50.0, 12.5, 40), (50.0, 25.0, 80)]
PEER = (32.0, 10.0, 80)
Way = Callable[[Tensor], Tensor]


def clips(shards: str, most: int) -> list[Tensor]:
    """Sounds of at least 0.6 s: STOI compares 0.4 s of speech."""
    opened = Shards(expand(shards))
    found = [opened[place].parts for place in spread(len(opened), 3 * most)]
    waves = [decode_audio(parts["flac"], rate_hz=RATE, max_seconds=30.0) for parts in found if "flac" in parts]
    return [wave for wave in waves if len(wave) >= 0.6 * RATE][:most]


def ours(vocoder: GriffinLim) -> Way:
    def back(wave: Tensor) -> Tensor:
        frames, keep = vocoder.mel.absolute(wave[None], torch.ones(1, len(wave), dtype=torch.bool))
        return vocoder(frames, keep)[0][0, : len(wave)]

    return back


def torchaudios(vocoder: GriffinLim, cfg: Mel) -> Way:
    """From the powers of torch.stft, through the same filters, with as many steps of the same momentum."""
    size, window, hop = vocoder.mel.fft_size, len(vocoder.mel.window), vocoder.mel.hop_samples
    shape = {"n_fft": size, "win_length": window, "hop_length": hop}
    inverse = torchaudio.transforms.InverseMelScale(
        size // 2 + 1, cfg.bins, cfg.rate_hz, cfg.low_hz, cfg.high_hz, norm=None, mel_scale="htk", driver="gelsd"
    )
    phases = torchaudio.transforms.GriffinLim(**shape, n_iter=ITERATIONS, momentum=MOMENTUM, rand_init=True)
    powers = torchaudio.transforms.Spectrogram(**shape, pad_mode="constant")

    def back(wave: Tensor) -> Tensor:
        found = phases(inverse(vocoder.mel.banks.T @ powers(wave)))
        return torch.nn.functional.pad(found, (0, max(len(wave) - len(found), 0)))[: len(wave)]

    return back


@torch.no_grad()
def measured(name: str, way: Way, waves: list[Tensor]) -> list[dict[str, object]]:
    values: dict[str, list[float]] = {"stoi": [], "spectral_distance": [], "ms": []}
    for wave in waves:
        torch.manual_seed(0)
        found: list[Tensor] = []
        taken = seconds(lambda wave=wave, found=found: found.append(way(wave)))
        keep = torch.ones(1, len(wave), dtype=torch.bool)
        scores = sound_values(found[0][None], wave[None], keep, RATE)
        values["ms"].append(1_000 * taken / (len(wave) / RATE))
        for metric in ("stoi", "spectral_distance"):
            values[metric].append(float(scores[metric][0]))
    units = {"stoi": "of 1", "spectral_distance": "", "ms": "ms a second of sound"}
    return [row(f"{name}: {metric}", values[metric], unit=unit) for metric, unit in units.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="data/numbers/val/audio-*.tar")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    waves, rows = clips(args.shards, args.clips), []
    for window_ms, hop_ms, bins in KINDS:
        vocoder = GriffinLim(Mel(window_ms=window_ms, hop_ms=hop_ms, bins=bins))
        name = f"window {window_ms:g} ms, hop {hop_ms:g} ms, {bins} bins"
        rows += measured(name, ours(vocoder), waves)
    cfg = Mel(window_ms=PEER[0], hop_ms=PEER[1], bins=PEER[2])
    name = f"torchaudio: window {PEER[0]:g} ms, hop {PEER[1]:g} ms, {PEER[2]} bins"
    rows += measured(name, torchaudios(GriffinLim(cfg), cfg), waves)
    versions = {"torch": torch.__version__, "torchaudio": torchaudio.__version__}
    write_report(args.out, rows, versions, clips=len(waves), threads=1)


if __name__ == "__main__":
    main()
