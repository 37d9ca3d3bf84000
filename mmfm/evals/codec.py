"""Scores of codecs: what an item loses on its way through the codes, what the codes cost, and how many are in use.

Pictures: PSNR and SSIM, and bits per pixel. Sounds: multi-scale spectral distance, STOI and SI-SDR, and bits per
second. Of every codebook the share of its codes that occur, and the entropy of those, in bits. A share of codes can
only fall when items are drawn again, so its interval lies below it.

The chance level of a picture is that of plain grey, and of a sound that of noise as loud as it; what the codes cost is
beside 8 bits for every value of a pixel and 16 for every sample.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import pystoi
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import csr_array
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
from torchmetrics.functional.image import structural_similarity_index_measure

from mmfm.config import ImagePreprocess
from mmfm.data.batch import Batch
from mmfm.data.vocabulary import CodeFormat
from mmfm.datasets.encode import Coder, coders_of
from mmfm.evals.metrics import Score, Statistic, mean, ratio
from mmfm.evals.split import Coded, numbered_names, reads
from mmfm.inference.interface import Interface
from mmfm.models.codecs.losses import spectral_distance

BEST_DB = 100.0  # of a picture that comes back to the bit; a mean of infinities would tell nothing
SSIM_SIDE_PX = 11  # of its window: smaller pictures have no SSIM
TOO_SHORT = 1e-5  # what pystoi says of a sound that is shorter than the 0.4 s of speech that it compares
AT_ONCE = 1 << 22  # cells of a table of resamples by codes
Values = dict[str, Float[np.ndarray, " n"]]
EMPTY = Coded([], [], {}, {}, [], [])


def scored_coders(model: object) -> dict[str, Coder]:
    """The codecs that the run trained, or all where it did nothing else."""
    if not isinstance(model, Interface):
        return {}
    learned = {item.modality for item in model.run.reconstruction}
    chosen = {name: cfg for name, cfg in model.config.codecs.items() if name in learned or not reads(cast(Any, model))}
    return coders_of(dict(model.core.codecs.named_children()), chosen)


def code_batch(batch: Batch, modality: str, coder: Coder, media: Sequence[str]) -> Coded:
    """The items of a batch there and back. `media`: their digests."""
    items = batch.items.get(modality)
    if items is None:
        return EMPTY
    keys = [batch.keys[row] for row in items.rows.tolist()]
    return code(coder, *(items.raw or (items.x, items.keep)), keys=keys, media=media)


@torch.no_grad()
def code(coder: Coder, x: Tensor, keep: Bool[Tensor, "n time"], *, keys: Sequence[str], media: Sequence[str]) -> Coded:
    """Pictures, or padded sounds, there and back; each called by its key."""
    ids, written = coder.codec.encode(x, keep)
    back, _ = coder.codec.decode(ids, written)
    if isinstance(coder.contract, ImagePreprocess):
        values, chance = picture_values(back, x), picture_values(torch.full_like(x, 128), x)
        room = [float(coder.contract.height_px * coder.contract.width_px)] * len(x)
    else:
        back = _fitted(back, x.shape[1])
        values = sound_values(back, x, keep, coder.contract.rate_hz)
        chance = sound_values(_noise(x, keep), x, keep, coder.contract.rate_hz)
        room = [count / coder.contract.rate_hz for count in keep.sum(1).tolist()]
    codes = [row[real].cpu().numpy() for row, real in zip(ids, written, strict=True)]
    return Coded(list(keys), list(media), values, chance, codes, room)


def picture_values(
    found: UInt8[Tensor, "n channels height width"], wanted: UInt8[Tensor, "n channels height width"]
) -> Values:
    """PSNR in dB of values of 0..255, at most BEST_DB; and SSIM (Wang et al. 2004), mirrored at the
    borders, where both sides have SSIM_SIDE_PX."""
    a, b = found.float() / 255, wanted.float() / 255
    error = (a - b).square().flatten(1).mean(1).double()
    values = {"psnr": (-10 * error.clamp(min=10 ** (-BEST_DB / 10)).log10()).cpu().numpy()}
    if min(a.shape[2:]) >= SSIM_SIDE_PX:
        same = cast(Tensor, structural_similarity_index_measure(a, b, reduction="none", data_range=1.0))
        values["ssim"] = same.double().cpu().numpy().reshape(-1)
    return values


def sound_values(
    found: Float[Tensor, "n samples"], wanted: Float[Tensor, "n samples"], keep: Bool[Tensor, "n samples"], rate_hz: int
) -> Values:
    """`losses.spectral_distance`, STOI (Taal et al. 2011; nan where a sound is too short), and SI-SDR in dB
    (arXiv 1811.02508; it asks for the same phases, which a vocoder of magnitudes does not give)."""
    clips = [(a[real].double().cpu(), b[real].double().cpu()) for a, b, real in zip(found, wanted, keep, strict=True)]
    return {
        "spectral_distance": spectral_distance(found.float(), wanted.float(), keep).double().cpu().numpy(),
        "stoi": np.array([_stoi(a.numpy(), b.numpy(), rate_hz) for a, b in clips]),
        "si_sdr": np.array([float(scale_invariant_signal_distortion_ratio(a, b)) for a, b in clips]),
    }


def _stoi(found: Float[np.ndarray, " n"], wanted: Float[np.ndarray, " n"], rate_hz: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value = float(pystoi.stoi(wanted, found, rate_hz)) if wanted.any() else math.nan
    return math.nan if value == TOO_SHORT else value


def codec_scores(modality: str, coder: Coder, found: Coded | None) -> tuple[list[Score], list[str]]:
    """Fidelity, cost and use of the codes, and a line for each thing that they do not cover."""
    task = f"{modality} codec"
    if found is None or not found.keys:
        return [], [f"{task}: no sample has an item for it"]
    scores: list[Score] = []
    lines: list[str] = []
    for metric, values in found.values.items():
        there = np.isfinite(values)
        if not there.all():
            lines.append(f"{task}: {(~there).sum()} of {len(there)} items are too short or silent for {metric}")
        if there.any():
            chance = float(np.nanmean(found.chance[metric]))
            scores.append(_score(task, metric, mean(values[there]), chance, found, there))
    return [*scores, *_costs(task, coder, found), *_uses(task, coder.codec.form, found)], lines


def _costs(task: str, coder: Coder, found: Coded) -> list[Score]:
    """Bits where each code takes as many as its book needs."""
    form = coder.codec.form
    sizes = np.log2(form.sizes)
    bits = np.array([sizes[np.arange(len(codes)) % len(sizes)].sum() for codes in found.codes])
    picture = isinstance(coder.contract, ImagePreprocess)
    raw = (
        8.0 * coder.contract.channels if isinstance(coder.contract, ImagePreprocess) else 16.0 * coder.contract.rate_hz
    )
    metric = "bits_per_pixel" if picture else "bits_per_second"
    return [_score(task, metric, ratio(bits, np.array(found.room)), raw, found)]


def _uses(task: str, form: CodeFormat, found: Coded) -> list[Score]:
    """Of each book; a codec of one code would use one of them, and say nothing."""
    scores: list[Score] = []
    for book, (start, size) in enumerate(_books(form)):
        own = [codes[book :: len(form.sizes)] - start for codes in found.codes]
        counts = _counts(own, size)
        last = f"/{book}" if len(form.sizes) > 1 else ""
        scores.append(_score(task, f"codebook_usage{last}", _over(counts, _share), 1 / size, found))
        scores.append(_score(task, f"code_entropy_bits{last}", _over(counts, _entropy), 0.0, found))
    return scores


def _score(
    task: str,
    metric: str,
    statistic: Statistic,
    chance: float,
    found: Coded,
    there: Bool[np.ndarray, " n"] | None = None,
) -> Score:
    """Over all items, or those that are `there`."""
    keep = np.ones(len(found.keys), bool) if there is None else there
    names, media = (tuple(itertools.compress(every, keep)) for every in (found.keys, found.media))
    clusters = media if len(set(media)) < len(media) else ()
    told = {"n": len(names), "items": names, "clusters": clusters}
    return Score(task=task, metric=metric, statistic=statistic, chance=chance, **told)


def _books(form: CodeFormat) -> Iterable[tuple[int, int]]:
    """First id and size of each."""
    return [(sum(form.sizes[:book]), size) for book, size in enumerate(form.sizes)]


def _counts(codes: Sequence[Int[np.ndarray, "_"]], size: int) -> csr_array:
    """How often each item has each code."""
    items = np.repeat(np.arange(len(codes)), [len(row) for row in codes])
    places = np.concatenate(codes) if codes else np.empty(0, int)
    return csr_array((np.ones(len(places)), (items, places)), shape=(len(codes), size))


def _over(counts: csr_array, rule: Callable[[np.ndarray], np.ndarray]) -> Statistic:
    """`rule` of the counts [resamples, codes] of the items that were drawn, so many resamples at once as have room."""
    n, size = cast(tuple[int, int], counts.shape)
    step = max(1, AT_ONCE // (size + n))

    def statistic(index: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(index), step):
            drawn = index[start : start + step]
            cells = (np.arange(len(drawn))[:, None] * n + drawn).ravel()
            weights = np.bincount(cells, minlength=len(drawn) * n).reshape(-1, n)
            parts.append(rule((counts.T @ weights.T).T))
        return np.concatenate(parts)

    return statistic


def _share(counts: np.ndarray) -> np.ndarray:
    return (counts > 0).mean(1)


def _entropy(counts: np.ndarray) -> np.ndarray:
    shares = counts / counts.sum(1, keepdims=True)
    return -(shares * np.log2(shares, out=np.zeros_like(shares), where=shares > 0)).sum(1)


def _noise(x: Float[Tensor, "n samples"], keep: Bool[Tensor, "n samples"]) -> Float[Tensor, "n samples"]:
    """White noise of each sound's power, the same for the same length."""
    draw = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0)).to(x)
    power = (x * keep).square().sum(1) / keep.sum(1).clamp(min=1)
    return draw * power.sqrt()[:, None] * keep


def _fitted(x: Float[Tensor, "n samples"], length: int) -> Float[Tensor, "n length"]:
    """Whole steps of codes may end after the sound, or a codec before it."""
    return torch.nn.functional.pad(x, (0, max(length - x.shape[1], 0)))[:, :length]


def joined(parts: Sequence[Coded]) -> Coded:
    """All items; one whose key came before has a number behind it."""
    some = [part for part in parts if part.keys]
    if not some:
        return EMPTY
    values, chance = (
        {name: np.concatenate([getattr(part, kind)[name] for part in some]) for name in some[0].values}
        for kind in ("values", "chance")
    )
    media, codes, room = ([one for part in some for one in getattr(part, kind)] for kind in ("media", "codes", "room"))
    keys = numbered_names([key for part in some for key in part.keys])
    return Coded(keys, media, values, chance, codes, room)
