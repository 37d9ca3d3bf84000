"""One encoder as other people's code uses it: an nn.Module that knows what its inputs must look like."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from mmfm import config
from mmfm.batch import Batch, Items, Tokens
from mmfm.config import MODALITIES, UserError, require
from mmfm.grammar import Task
from mmfm.inputs.text import Tokenizer
from mmfm.interface import Interface, Picture
from mmfm.model import UnifiedModel, build
from mmfm.tasks import read

ONE = (str, Path, Image.Image)
CONTRACTS = {"image": "pixels", "audio": "sound", "text": "words"}


class BundledEncoder(nn.Module):
    """The encoder of one modality. Gradients flow; wrap calls in torch.no_grad() where none are wanted.

    Inputs are what `prepare` takes. `run` holds the configuration of the model, without what it was trained on.
    """

    def __init__(self, core: UnifiedModel, modality: str, run: config.Run, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.core, self.modality, self.run, self.tokenizer = core, modality, run, tokenizer

    @property
    def width(self) -> int:
        """Of the tower's tokens."""
        return self.core.towers[self.modality].width  # pyright: ignore[reportReturnType]

    @property
    def embed_dim(self) -> int:
        """Of `embed`; 0 for a tower alone, which has no embedding."""
        return self.core.embed_dim if self.modality in self.core.heads else 0

    @property
    def preprocess(self) -> config.Pixels | config.Sound | config.Words | None:
        """What it expects of its input; None: texts by `tokenize`, without a contract of the tower's own."""
        return getattr(getattr(self.run.model, self.modality), CONTRACTS[self.modality])

    def transform(self, picture: Picture) -> Tensor:
        """A picture as uint8 [channels, height, width] of the tower's size; the tower normalises."""
        return self._face().transform(picture)

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "n time"]:
        """Ids as the tower reads them, padded with -1 to the longest."""
        return self._face().tokenize(texts)

    def prepare(self, inputs: Any, keep: Bool[Tensor, "n time"] | None = None) -> Items:
        """What the model reads, of one input or a sequence of them.

        image: paths, Pillow's pictures, uint8 arrays [height, width(, channels)], or a Tensor uint8 [n, channels,
        height, width] of `transform`. audio: paths, waveforms [samples] at `preprocess.rate_hz`, or a Tensor of them
        with `keep`. text: strings, or a Tensor of `tokenize`. Raises UserError for what cannot be read.
        """
        if isinstance(inputs, Items):
            return inputs.to(self.core.device)
        given = [inputs] if isinstance(inputs, ONE) else inputs
        if isinstance(given, Tensor):
            x, kept = self._tensor(given, keep)
        else:
            given = list(given)
            require(keep is None, "keep is given with a tensor only: of other inputs the lengths are known")
            require(len(given) > 0, f"no {self.modality} was given; give at least one")
            x, kept = {"image": self._images, "audio": self._waves, "text": self._texts}[self.modality](given)
        return Items(x=x, keep=kept, rows=torch.arange(len(x))).to(self.core.device)

    def tokens(self, inputs: Any, keep: Bool[Tensor, "n time"] | None = None) -> Tokens:
        """The tower's tokens, `keep` True where real."""
        return self.core.tokens(self.modality, self.prepare(inputs, keep))

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
        batch = Batch(size=len(items.rows), items={self.modality: items}, same=items.rows)
        reading = read(self.core, Task((self.modality,), None), batch)
        assert reading is not None
        return reading.embedding

    def _face(self) -> Interface:
        return Interface(self.core, self.run, self.tokenizer)

    def _tensor(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        dims = {"image": 4, "audio": 2, "text": 2}[self.modality]
        require(x.ndim == dims and len(x) > 0, f"a batch of {self.modality} has {dims} dimensions, not {list(x.shape)}")
        if self.modality == "image":
            require(x.dtype == torch.uint8, f"pixels are uint8, as transform gives them, not {x.dtype}")
            return x, torch.ones(len(x), 1, dtype=torch.bool)
        if self.modality == "text":
            return x.clamp(min=0), x >= 0
        return x, torch.ones_like(x, dtype=torch.bool) if keep is None else keep

    def _images(self, given: list[Any]) -> tuple[Tensor, Tensor]:
        pictures = [Image.fromarray(one) if isinstance(one, np.ndarray) else one for one in given]
        return self._tensor(
            torch.stack([one if isinstance(one, Tensor) else self.transform(one) for one in pictures]), None
        )

    def _waves(self, given: list[Any]) -> tuple[Tensor, Tensor]:
        face = self._face()
        clips = [face._load_audio(one) if isinstance(one, str | Path) else torch.as_tensor(one) for one in given]
        wrong = next((list(clip.shape) for clip in clips if clip.ndim != 1), [])
        require(not wrong, f"a waveform has one dimension, its samples, not {wrong}; give the mean of its channels")
        x = nn.utils.rnn.pad_sequence([clip.float() for clip in clips], batch_first=True)
        return x, torch.arange(x.shape[1]) < torch.tensor([len(clip) for clip in clips])[:, None]

    def _texts(self, given: list[Any]) -> tuple[Tensor, Tensor]:
        wrong = next((type(one).__name__ for one in given if not isinstance(one, str)), "")
        require(not wrong, f"a text is a string, not {wrong}")
        return self._tensor(self.tokenize(given), None)


def only(model: config.Model, modalities: Sequence[str]) -> config.Model:
    """The model with these towers and no others."""
    return replace(model, **{name: None for name in MODALITIES if name not in modalities})


def bare(run: config.Run, modality: str, text_size: int) -> UnifiedModel:
    """What one modality's embedding needs: tower, connector, pool, head and trunk, fresh. Nothing to write with."""
    core = build(only(run.model, (modality,)), text_size)
    core.embedding = nn.Embedding(0, core.trunk.width)  # with no row it still tells device and type
    core.output = None
    return core


def lone(run: config.Run, modality: str, text_size: int) -> UnifiedModel:
    """A tower alone, fresh."""
    core = bare(run, modality, text_size)
    for name in ("trunk", "connectors", "pools", "heads"):
        setattr(core, name, nn.ModuleDict())
    return core


def missing(modality: str, where: str | Path, there: Sequence[str]) -> UserError:
    return UserError(f"{where} holds no {modality} encoder; it holds {', '.join(there)}")
