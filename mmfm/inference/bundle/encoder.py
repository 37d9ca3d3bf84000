"""One encoder as other people's code uses it: an nn.Module that knows what its inputs must look like."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.config import UserError, require
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Items, Tokens
from mmfm.data.vocabulary import Vocabulary
from mmfm.inference.processor import Processor
from mmfm.models.model import UnifiedModel, build
from mmfm.objectives.task_pass import forward_task
from mmfm.preprocessing.tokenizer import Tokenizer

CONTRACTS = {"image": "pixels", "audio": "sound", "text": "words"}


class BundledEncoder(nn.Module):
    """The encoder of one modality. Gradients flow; wrap calls in torch.no_grad() where none are wanted.

    Inputs are what `prepare` takes. `run` holds the configuration of the model, without what it was trained on.
    """

    def __init__(self, core: UnifiedModel, modality: str, run: config.Run, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.core, self.modality, self.run, self.tokenizer = core, modality, run, tokenizer
        self.processor = Processor(run, tokenizer.limited(run))

    @property
    def width(self) -> int:
        """Of the tower's tokens."""
        return self.core.towers[self.modality].width  # pyright: ignore[reportReturnType]

    @property
    def embed_dim(self) -> int:
        """Of `embed`; 0 for a tower alone, which has no embedding."""
        return self.core.embed_dim if self.modality in self.core.heads else 0

    @property
    def preprocess(self) -> config.ImagePreprocess | config.AudioPreprocess | config.TokenizerSpec | None:
        """What it expects of its input; None: texts by `tokenize`, without a contract of the tower's own."""
        return getattr(getattr(self.run.model, self.modality), CONTRACTS[self.modality])

    def transform(self, picture: Any) -> Tensor:
        """A picture as uint8 [channels, height, width] of the tower's size; the tower normalises."""
        return self.processor.transform(picture)

    def tokenize(self, texts: Any) -> Int[Tensor, "n time"]:
        """Ids as the tower reads them, padded with -1 to the longest."""
        return self.processor.tokenize(texts)

    def prepare(self, inputs: Any, keep: Bool[Tensor, "n time"] | None = None) -> Items:
        """What the model reads, of one input or a sequence of them.

        image: paths, Pillow's pictures, uint8 arrays [height, width(, channels)], or a Tensor uint8 [n, channels,
        height, width] of `transform`. audio: paths, waveforms [samples] at `preprocess.rate_hz`, or a Tensor of them
        with `keep`. text: strings, or a Tensor of `tokenize`. Raises UserError for what cannot be read.
        """
        found = inputs if isinstance(inputs, Items) else self.processor.items(self.modality, inputs, keep)
        return found.to(self.core.device)

    def tokens(self, inputs: Any, keep: Bool[Tensor, "n time"] | None = None) -> Tokens:
        """The tower's tokens, `keep` True where real."""
        items = self.prepare(inputs, keep)
        require(len(items.rows) > 0, f"no {self.modality} was given; give at least one")
        return self.core.tokens(self.modality, items)

    def forward(self, inputs: Any, keep: Bool[Tensor, "n time"] | None = None) -> Tokens:
        return self.tokens(inputs, keep)

    def embed(self, inputs: Any, keep: Bool[Tensor, "n time"] | None = None) -> Float[Tensor, "n dim"]:
        """Unit vectors, those of `Interface.encode_*`. A tower alone has none: a UserError."""
        require(
            self.embed_dim > 0,
            f"this bundle holds a tower alone, which gives tokens and no embedding; train a model with it, "
            f"or take tokens(...) of the {self.modality}",
        )
        items = self.prepare(inputs, keep)
        if not len(items.rows):
            return torch.zeros(0, self.embed_dim, dtype=self.core.dtype, device=self.core.device)
        batch = Batch(size=len(items.rows), items={self.modality: items}, positive_ids=items.rows)
        reading = forward_task(self.core, Task((self.modality,), None), batch)
        assert reading is not None
        return reading.embedding.to(self.core.dtype)


def bare(run: config.Run, modality: str, text_size: int) -> UnifiedModel:
    """What one modality's embedding needs: tower, connector, pool, head and trunk, fresh. Nothing to write with."""
    core = build(replace(run.model.reading((modality,)), image_codec=None, audio_codec=None), text_size)
    if not reads_table(run, modality):
        core.embedding = nn.Embedding(0, core.trunk.width)  # with no row it still tells device and type
    core.output = None
    return core


def reads_table(run: config.Run, modality: str) -> bool:
    """Whether it is a text without a tower of its own, which the trunk's table reads."""
    return isinstance(getattr(run.model, modality), config.Embedded)


def texts_of_table(
    core: UnifiedModel, run: config.Run, table: Float[Tensor, "vocabulary width"]
) -> Float[Tensor, "fewer width"]:
    """Of the whole model's table what `bare` reads: the rows of texts, where they stand without those of codes."""
    whole = Vocabulary(text=core.vocabulary.text, **{name: run.model.codes(name) for name in ("image", "audio")})
    there, here = whole.span("text"), core.vocabulary.span("text")
    out = table.new_zeros(core.vocabulary.size, table.shape[1])
    out[here.start : here.stop] = table[there.start : there.stop]
    return out


def lone(run: config.Run, modality: str, text_size: int) -> UnifiedModel:
    """A tower alone, fresh."""
    core = bare(run, modality, text_size)
    for name in ("trunk", "connectors", "pools", "heads"):
        setattr(core, name, nn.ModuleDict())
    return core


def missing(modality: str, where: str | Path, there: Sequence[str]) -> UserError:
    return UserError(f"{where} holds no {modality} encoder; it holds {', '.join(there)}")
