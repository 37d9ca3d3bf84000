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
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import pystoi
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import csr_array
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
from torchmetrics.functional.image import structural_similarity_index_measure

from mmfm.config import ImagePreprocess
from mmfm.data.decode import Decode
from mmfm.data.documents import steps_of
from mmfm.data.vocabulary import CodeFormat
from mmfm.datasets.encode import Coder, coders_of, decoded, padded
from mmfm.evals.metrics import Score, Statistic, mean, ratio
from mmfm.evals.parts import media_of
from mmfm.evals.sharding import shared
from mmfm.evals.split import Samples, Watch, batches, reads, spread
from mmfm.inference.interface import Interface
from mmfm.models.codecs.losses import spectral_distance
from mmfm.preprocessing import BadSample
from mmfm.runtime.distributed import Collective, SingleProcess

BEST_DB = 100.0  # of a picture that comes back to the bit; a mean of infinities would tell nothing
SSIM_SIDE_PX = 11  # of its window: smaller pictures have no SSIM
TOO_SHORT = 1e-5  # what pystoi says of a sound that is shorter than the 0.4 s of speech that it compares
AT_ONCE = 1 << 22  # cells of a table of resamples by codes
ALONE = SingleProcess()
Values = dict[str, Float[np.ndarray, " n"]]


class Coded(NamedTuple):
    """What one batch gave, by item; `room`: pixels or seconds, `bad`: codes of those that cannot be decoded.
    `media`: a digest of what was coded, equal where one picture or sound is in several samples."""

    keys: list[str]
    media: list[str]
    values: Values
    plain: Values  # of what the chance level is of
    codes: list[Int[np.ndarray, "_"]]
    room: list[float]
    bad: list[str]


@dataclass(frozen=True, kw_only=True)
class Coding:
    """Figures of all codecs that were scored, and a line for each thing that they do not cover."""

    figures: list[Score]
    left_out: list[str]


def scored_codecs(model: object) -> dict[str, Coder]:
    """The codecs that the run trained, or all where it did nothing else."""
    if not isinstance(model, Interface):
        return {}
    learned = {item.modality for item in model.run.reconstruction}
    chosen = {name: cfg for name, cfg in model.config.codecs.items() if name in learned or not reads(cast(Any, model))}
    return coders_of(dict(model.core.codecs.named_children()), chosen)


def score_codecs(
    coders: Mapping[str, Coder],
    samples: Samples,
    *,
    decode: Decode,
    batch: int = 64,
    limit: int | None = None,
    device: str | torch.device = "cpu",
    watch: Watch = iter,
    ranks: Collective = ALONE,
) -> Coding:
    """All figures over the items of these samples. With `ranks` all must ask, and each gets the same."""
    places = spread(len(samples), limit)
    figures: list[Score] = []
    left_out: list[str] = []
    for modality, coder in coders.items():
        pack, unpack = _packed, _unpacked

        def work(part: list[int], coder: Coder = coder, modality: str = modality) -> Coded:
            return code([samples[places[at]] for at in part], modality, coder, decode, device)

        pieces = batches(0, len(places), batch)
        found = _joined(shared(pieces, work, ranks, pack=pack, unpack=unpack, watch=watch))
        if found.bad:
            told = ", ".join(f"{name} ({count})" for name, count in sorted(Counter(found.bad).items()))
            left_out.append(f"{modality} codec: {len(found.bad)} items cannot be decoded: {told}")
        if found.keys:
            own, lines = figures_of(modality, coder, found)
            figures, left_out = figures + own, left_out + lines
        else:
            left_out.append(f"{modality} codec: no sample has an item for it")
    return Coding(figures=figures, left_out=left_out)


@torch.no_grad()
def code(
    samples: Sequence[Any], modality: str, coder: Coder, decode: Decode, device: str | torch.device = "cpu"
) -> Coded:
    """Items there and back."""
    keys: list[str] = []
    media: list[str] = []
    items: list[Tensor] = []
    bad: list[str] = []
    for sample in (step for whole in samples for step in steps_of(whole)):
        try:
            item = decoded(sample, modality, coder.contract, decode)
        except BadSample as why:
            bad.append(why.code)
        else:
            if item is not None:
                keys.append(sample.key)
                media.append(media_of(sample, (modality,)))
                items.append(item)
    if not items:
        return Coded([], [], {}, {}, [], [], bad)
    x, keep = padded(items, device)
    ids, written = coder.codec.encode(x, keep)
    back, _ = coder.codec.decode(ids, written)
    if isinstance(coder.contract, ImagePreprocess):
        values, plain = picture_values(back, x), picture_values(torch.full_like(x, 128), x)
        room = [float(coder.contract.height_px * coder.contract.width_px)] * len(items)
    else:
        back = _fitted(back, x.shape[1])
        values = sound_values(back, x, keep, coder.contract.rate_hz)
        plain = sound_values(_noise(x, keep), x, keep, coder.contract.rate_hz)
        room = [count / coder.contract.rate_hz for count in keep.sum(1).tolist()]
    codes = [row[real].cpu().numpy() for row, real in zip(ids, written, strict=True)]
    return Coded(keys, media, values, plain, codes, room, bad)


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
    found: Float[Tensor, "n samples"],
    wanted: Float[Tensor, "n samples"],
    keep: Bool[Tensor, "n samples"],
    rate_hz: int,
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


def figures_of(modality: str, coder: Coder, found: Coded) -> tuple[list[Score], list[str]]:
    """Fidelity, cost and use of the codes."""
    task = f"{modality} codec"
    figures: list[Score] = []
    lines: list[str] = []
    for metric, values in found.values.items():
        there = np.isfinite(values)
        if not there.all():
            lines.append(f"{task}: {(~there).sum()} of {len(there)} items are too short or silent for {metric}")
        if there.any():
            chance = float(np.nanmean(found.plain[metric]))
            figures.append(_figure(task, metric, mean(values[there]), chance, found, there))
    return [*figures, *_costs(task, coder, found), *_uses(task, coder.codec.form, found)], lines


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
    return [_figure(task, metric, ratio(bits, np.array(found.room)), raw, found)]


def _uses(task: str, form: CodeFormat, found: Coded) -> list[Score]:
    """Of each book; a codec of one code would use one of them, and say nothing."""
    figures: list[Score] = []
    for book, (start, size) in enumerate(_books(form)):
        own = [codes[book :: len(form.sizes)] - start for codes in found.codes]
        counts = _counts(own, size)
        last = f"/{book}" if len(form.sizes) > 1 else ""
        figures.append(_figure(task, f"codebook_usage{last}", _over(counts, _share), 1 / size, found))
        figures.append(_figure(task, f"code_entropy_bits{last}", _over(counts, _entropy), 0.0, found))
    return figures


def _figure(
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


def _joined(parts: Sequence[Coded]) -> Coded:
    some = [part for part in parts if part.keys]
    names = list(some[0].values) if some else []
    return Coded(
        keys=_named([key for part in some for key in part.keys]),
        media=[one for part in some for one in part.media],
        values={name: np.concatenate([part.values[name] for part in some]) for name in names},
        plain={name: np.concatenate([part.plain[name] for part in some]) for name in names},
        codes=[codes for part in some for codes in part.codes],
        room=[room for part in some for room in part.room],
        bad=[code for part in parts for code in part.bad],
    )


def _named(keys: Sequence[str]) -> list[str]:
    """Each with a number behind it where it came before."""
    seen: Counter[str] = Counter()
    return [f"{key} #{seen[key]}" if seen.update([key]) or seen[key] > 1 else key for key in keys]


def _packed(part: Coded) -> dict[str, Any]:
    """As what JSON and tensors can hold."""
    tree: dict[str, Any] = part._asdict() | {"codes": [torch.from_numpy(codes) for codes in part.codes]}
    for name in ("values", "plain"):
        tree[name] = {metric: torch.from_numpy(values) for metric, values in tree[name].items()}
    return tree


def _unpacked(tree: dict[str, Any]) -> Coded:
    """The inverse."""
    of = {name: {metric: x.numpy() for metric, x in tree[name].items()} for name in ("values", "plain")}
    return Coded(**{**tree, **of, "codes": [codes.numpy() for codes in tree["codes"]]})
