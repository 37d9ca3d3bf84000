"""Batches to plan with: of the run's own data where these are here, else made up from what the configuration says."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmfm.config import AudioPreprocess, ImagePreprocess, Run, require
from mmfm.config.task import parse_writing
from mmfm.data.augment import DRAWS
from mmfm.data.batch import Batch, Ids, Items
from mmfm.data.decode import contracts_of
from mmfm.data.stream import TrainStream
from mmfm.models.model import UnifiedModel
from mmfm.preprocessing.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What is taken for granted of samples that are not here. Lengths are spread evenly from half of these to them."""

    text_tokens: int = 64
    audio_seconds: float = 10.0
    vocabulary: int = 32_768  # of a tokenizer that is not here
    architectures: str = ""  # a folder in which the configurations of hf:NAME lie at NAME; else they are fetched

    def __post_init__(self) -> None:
        for name in ("text_tokens", "audio_seconds", "vocabulary"):
            value = getattr(self, name)
            require(value > 0, f"--{name.replace('_', '-')} {value} must be greater than 0")


Batches = Callable[[int], Batch]


def whole_samples(run: Run, size: int) -> int:
    """As many samples, and all that a batch of the run's mixture needs to be one."""
    unit = 1 if run.data.mix_by == "batch" else sum(source.weight for source in run.data.train)
    return -(-size // unit) * unit


def own_batches(run: Run, tokenizer: Tokenizer) -> Batches:
    """The first batch of the run, if it had so many samples. UserError where its data are not here."""

    def batch(size: int) -> Batch:
        data = replace(run.data, batch_size=size, tokens_per_batch=0, num_workers=0, cache_mb=0)
        return next(iter(TrainStream(replace(run, data=data, devices=1), tokenizer, rank=0, world=1)))

    batch(whole_samples(run, 1))
    return batch


def made_up_batches(run: Run, model: UnifiedModel, assumed: Assumed) -> Batches:
    """Samples of the run's sources in their proportion. UserError for modalities of one's own."""
    own = sorted(run.model.own)
    require(
        not own, f"{', '.join(own)} is of your own making, and its samples cannot be made up; plan where the data are"
    )

    def batch(size: int) -> Batch:
        draw = torch.Generator().manual_seed(run.seed)
        rows = _rows(run, size)
        makers = {"image": _images, "audio": _sounds, "text": _texts}
        items = {
            name: _written(run, model, name, makers[name](run, model, assumed, index, draw))
            for name, index in rows.items()
            if len(index)
        }
        return Batch(size=size, items=items, positive_ids=torch.arange(size))

    return batch


def _rows(run: Run, size: int) -> dict[str, Tensor]:
    """By modality the sample of each item, rising."""
    sources = [source for source in run.data.train for _ in range(source.weight)]
    require(bool(sources), "Data.train is empty; list at least one Source")
    held: dict[str, list[int]] = {"image": [], "audio": [], "text": []}
    for row in range(size):
        source = sources[row * len(sources) // size]
        for name in held:
            if name in source.modalities:
                twice = 2 if name == "text" and source.targets else 1
                held[name] += [row] * (1 + source.num_shots) * twice
    return {name: torch.tensor(rows, dtype=torch.int64) for name, rows in held.items()}


def _lengths(count: int, most: int) -> Tensor:
    """From half of the most to the most, the longest first."""
    return torch.linspace(most, max(1, most // 2), count).round().long()


def _draws(count: int, draw: torch.Generator) -> Tensor:
    return torch.rand(count, DRAWS, generator=draw)


def _images(run: Run, model: UnifiedModel, assumed: Assumed, rows: Tensor, draw: torch.Generator) -> Items:
    how = contracts_of(run.model, "image")[0]
    assert isinstance(how, ImagePreprocess)
    x = torch.zeros(len(rows), how.channels, how.height_px, how.width_px, dtype=torch.uint8)
    return Items(x=x, keep=torch.ones(len(rows), 1, dtype=torch.bool), rows=rows, draws=_draws(len(rows), draw))


def _sounds(run: Run, model: UnifiedModel, assumed: Assumed, rows: Tensor, draw: torch.Generator) -> Items:
    how, data = contracts_of(run.model, "audio")[0], run.data
    assert isinstance(how, AudioPreprocess)
    seconds = min(assumed.audio_seconds, data.crop_seconds or data.max_seconds)
    lengths = _lengths(len(rows), round(seconds * how.rate_hz))
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    wave = 0.1 * torch.rand(keep.shape, generator=draw) * keep
    return Items(x=wave, keep=keep, rows=rows, draws=_draws(len(rows), draw))


def _texts(run: Run, model: UnifiedModel, assumed: Assumed, rows: Tensor, draw: torch.Generator) -> Items:
    tower = run.model.text
    words = tower.words if tower is not None else None
    most = min(assumed.text_tokens, run.data.max_text_tokens or assumed.text_tokens)
    ids = _ids(len(rows), most, model.vocabulary.text, draw)
    draws = _draws(len(rows), draw)
    if words is None:
        return Items(x=ids.ids, keep=ids.keep, rows=rows, draws=draws)
    read = _ids(len(rows), words.context if words.fill else min(most, words.context), 1, draw)
    return Items(x=read.ids, keep=read.keep, rows=rows, draws=draws, written=ids)


def _ids(count: int, most: int, size: int, draw: torch.Generator) -> Ids:
    lengths = _lengths(count, most)
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    return Ids(torch.randint(0, size, keep.shape, generator=draw) * keep, keep)


def _written(run: Run, model: UnifiedModel, name: str, items: Items) -> Items:
    """With codes, where a codec's are written: what encodes them is not part of the plan."""
    targets = {parse_writing(item.task).target for item in run.generative}
    if name == "text" or name not in targets or name not in model.codecs or run.reconstruction:
        return items
    codec = model.codec(name)
    books = len(codec.form.sizes)
    if codec.form.length:
        lengths = torch.full((len(items.rows),), codec.form.length)
    else:
        lengths = books * -(-items.keep.sum(1) // codec.step_samples)
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    return replace(items, written=Ids(torch.zeros(keep.shape, dtype=torch.int64), keep))
