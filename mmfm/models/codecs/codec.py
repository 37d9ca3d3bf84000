"""What every codec does: a picture or a sound becomes codes, and codes become a picture or a sound."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from mmfm.data.batch import Ids
from mmfm.data.vocabulary import CodeFormat


@runtime_checkable
class Codec(Protocol):
    """Pictures are uint8 [n, channels, height, width] with keep [n, 1]; sounds float [n, samples] with keep likewise.

    What is padded, and which items stand beside one, changes none of its codes.
    """

    form: CodeFormat
    step_samples: int  # of a sound: how much of it a turn of codes stands for; of pictures 0

    def encode(self, x: Tensor, keep: Tensor) -> Ids:
        """Local ids in the order of `form`."""
        ...

    def decode(self, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures or sounds, and which of it is real. Any ids of the form decode."""
        ...


@runtime_checkable
class Trainable(Codec, Protocol):
    """A codec that is learned here."""

    def losses(self, x: Tensor, keep: Tensor, draws: Tensor | None) -> Mapping[str, Tensor]:
        """By name, summed over the items: what stands between an item and what is decoded of its codes."""
        ...
