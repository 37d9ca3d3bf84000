"""A modality's way through a model as one module of tensors, with inputs to trace it by and others to check it by.

What goes in and comes out are plain tensors with names; batch and length are free. Which sizes are free is not listed
anywhere: it is what differs between two examples of different batch and length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmfm import config
from mmfm.compat.torch import parted
from mmfm.data.batch import Items, Tokens
from mmfm.models.imported import ImportedTower
from mmfm.models.model import UnifiedModel
from mmfm.pretrained import Encoder

Arrays = tuple[Tensor, ...]
TRACED_BATCH = 3  # no other size of the inputs should be equal to it
CHECKED_BATCHES = (1, 5, 2)


class Size(NamedTuple):
    """Of an example: rows, and samples or ids in the longest of them."""

    batch: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Graph:
    """`module(*example(size))` gives a tuple, one tensor for each of `outputs`. `reads`: what the inputs are, in words.

    `traced`, `checked`: sizes to trace with, and others at which the result must be that of the module.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: Callable[[Size], Arrays]
    traced: Size
    checked: tuple[Size, ...]
    reads: str
    lengths: str = "length"  # the free size after the batch, in words
    longest: int | None = None  # of it; None: any
    notes: tuple[str, ...] = field(default=())


class Path(nn.Module):
    """To a modality's embedding, unless it is of a tower alone, its tower's tokens and which of those are real."""

    def __init__(self, core: UnifiedModel, modality: str) -> None:
        super().__init__()
        self.core, self.modality, self.embeds = only(core, modality), modality, modality in core.heads

    def read(self, x: Tensor, keep: Tensor) -> Arrays:
        rows = torch.arange(x.shape[0], device=x.device)
        return self.finish(self.core.tokens(self.modality, Items(x=x, keep=keep, rows=rows)))

    def finish(self, tokens: Tokens) -> Arrays:
        if not self.embeds:
            return tuple(tokens)
        states = self.core.trunk([self.core.enter(self.modality, tokens)])[0]
        return self.core.head(self.modality, states), tokens.x, tokens.keep


class ImagePath(Path):
    """From pixels. Every token is real."""

    def forward(self, pixels: Tensor) -> Arrays:
        return self.read(pixels, torch.ones(pixels.shape[0], 1, dtype=torch.bool, device=pixels.device))[:-1]


class PaddedPath(Path):
    """From waveforms or ids."""

    def forward(self, x: Tensor, keep: Tensor) -> Arrays:
        return self.read(x, keep)


class FeaturePath(Path):
    """From the features that an encoder of another library makes of a waveform by code that is no graph."""

    def forward(self, features: Tensor, keep: Tensor) -> Arrays:
        return self.finish(encoder_of(self.core)(features, keep))


def encoder_of(core: UnifiedModel) -> Encoder:
    """Of sounds, from another library."""
    tower = core.towers["audio"]
    assert isinstance(tower, ImportedTower)
    return tower.encoder


def only(core: UnifiedModel, modality: str) -> UnifiedModel:
    """The same model with nothing in it that this modality's embedding does not need; it shares the weights."""
    part = parted(core)
    tower = parted(core.towers[modality])
    if isinstance(tower, ImportedTower):
        tower.kept = None  # a cache on disk is no part of a graph
    part.towers = nn.ModuleDict({modality: tower})
    if modality in core.heads:
        part.connectors = nn.ModuleDict({modality: core.connectors[modality]})
        part.heads = nn.ModuleDict({modality: core.heads[modality]})
        part.pools = nn.ParameterDict({name: pool for name, pool in core.pools.items() if name == modality})
    part.codecs, part.dropouts, part.output = nn.ModuleDict(), nn.ModuleDict(), None
    part.log_scales, part.biases = nn.ParameterDict(), nn.ParameterDict()
    part.embedding = nn.Embedding(1, 1, dtype=core.dtype, device=core.device)  # what says dtype and device
    return part.eval()


def graphs(core: UnifiedModel, cfg: config.Model, modalities: Sequence[str], ids: int) -> list[Graph]:
    """Of a unified model: one graph for each of these modalities. `ids`: how many the text path knows."""
    makers = {"image": _image, "audio": _audio, "text": _text}
    return [makers[name](core, cfg, ids) for name in modalities]


def _outputs(core: UnifiedModel, modality: str) -> tuple[str, ...]:
    return (*(("embedding",) if modality in core.heads else ()), "tokens", "tokens_keep")


def _image(core: UnifiedModel, cfg: config.Model, _: int) -> Graph:
    assert cfg.image is not None
    pixels = cfg.image.pixels
    shape = (pixels.channels, pixels.height_px, pixels.width_px)

    def example(size: Size) -> Arrays:
        draw = torch.Generator().manual_seed(size.batch)
        return (torch.randint(0, 256, (size.batch, *shape), dtype=torch.uint8, generator=draw),)

    return Graph(
        name="image",
        module=ImagePath(core, "image"),
        inputs=("pixels",),
        outputs=_outputs(core, "image")[:-1],
        example=example,
        traced=Size(TRACED_BATCH, 0),
        checked=tuple(Size(batch, 0) for batch in CHECKED_BATCHES),
        reads=f"pixels: uint8 [batch, {', '.join(map(str, shape))}], 0 to 255; they are normalised inside",
    )


def _audio(core: UnifiedModel, cfg: config.Model, _: int) -> Graph:
    assert cfg.audio is not None
    sound = cfg.audio.sound
    rate = sound.rate_hz
    if sound.extractor:
        return _features(core, sound)
    return Graph(
        name="audio",
        module=PaddedPath(core, "audio"),
        inputs=("waves", "keep"),
        outputs=_outputs(core, "audio"),
        example=lambda size: (_waves(size), _keep(size)),
        traced=Size(TRACED_BATCH, rate + 731),
        checked=tuple(map(Size, CHECKED_BATCHES, (rate // 2, 2 * rate + 7, rate // 3 + 1))),
        reads=f"waves: float32 [batch, samples], mono at {rate} Hz; keep: bool [batch, samples], True where real",
        lengths="samples",
        notes=("The spectrogram is computed inside.",),
    )


def _features(core: UnifiedModel, sound: config.AudioPreprocess) -> Graph:
    encoder, rate = encoder_of(core), sound.rate_hz

    def example(size: Size) -> Arrays:
        with torch.no_grad():
            return tuple(encoder.features(_waves(size), _keep(size)))

    return Graph(
        name="audio",
        module=FeaturePath(core, "audio"),
        inputs=("features", "keep"),
        outputs=_outputs(core, "audio"),
        example=example,
        traced=Size(TRACED_BATCH, rate + 731),
        checked=tuple(map(Size, CHECKED_BATCHES, (rate // 2, 2 * rate + 7, rate // 3 + 1))),
        reads="features and keep: what the extractor in preprocess.json makes of waveforms, keep True where real",
        lengths="frames",
        notes=("It starts at the features, not at the waveform: the source's own extractor is no graph.",),
    )


def _waves(size: Size) -> Tensor:
    return 0.1 * torch.randn(size.batch, size.length, generator=torch.Generator().manual_seed(size.batch))


def _keep(size: Size) -> Tensor:
    """The first row is whole, the others end earlier and earlier, none before its middle."""
    lengths = torch.linspace(size.length, (size.length + 1) // 2, size.batch).long()
    return torch.arange(size.length) < lengths[:, None]


def _text(core: UnifiedModel, cfg: config.Model, known: int) -> Graph:
    words = words_of(cfg)
    longest = longest_text(cfg)
    most = 77 if longest is None else longest
    lengths = (most,) * 4 if words is not None and words.fill else tuple(min(n, most) for n in (9, 4, 77, 17))

    def example(size: Size) -> Arrays:
        ids = torch.randint(0, known, size, generator=torch.Generator().manual_seed(size.batch))
        keep = torch.ones(size, dtype=torch.bool) if words is not None and words.fill else _keep(size)
        return ids, keep

    return Graph(
        name="text",
        module=PaddedPath(core, "text"),
        inputs=("ids", "keep"),
        outputs=_outputs(core, "text"),
        example=example,
        traced=Size(TRACED_BATCH, lengths[0]),
        checked=(*map(Size, CHECKED_BATCHES, lengths[1:]), *_shortest(words)),
        reads="ids: int64 [batch, length], of tokenizer.json; keep: bool [batch, length], True where real",
        longest=longest,
    )


def _shortest(words: config.TokenizerSpec | None) -> tuple[Size, ...]:
    """Texts of one token and of none, as far as the tokenizer gives such."""
    if words is None or not (words.begin or words.end or words.fill):
        return Size(2, 1), Size(1, 1), Size(2, 0)
    return () if words.fill else tuple(Size(2, n) for n in {len(words.begin) + len(words.end)})


def words_of(cfg: config.Model) -> config.TokenizerSpec | None:
    """The contract of a text tower with a tokenizer of its own; None: it reads the model's tokenizer."""
    if isinstance(cfg.text, config.TextTower):
        return cfg.text.words
    return cfg.text.made.words if isinstance(cfg.text, config.Tower) else None


def longest_text(cfg: config.Model) -> int | None:
    """The most ids that the text path can read; None: any number."""
    words, context = words_of(cfg), cfg.text.context if isinstance(cfg.text, config.TextTower) else 0
    limits = [limit for limit in (context, 0 if words is None else words.context) if limit]
    return min(limits, default=None)


def free_sizes(graph: Graph) -> list[list[bool]]:
    """For each input and each of its axes: does it depend on batch or length?"""
    sizes = (graph.traced, *graph.checked)
    shapes = [[array.shape for array in graph.example(size)] for size in sizes]
    return [[len(set(axis)) > 1 for axis in zip(*each, strict=True)] for each in zip(*shapes, strict=True)]
