"""Encoders in a folder, with a proof that they are what they were when they were written.

`contents` says what is in it, `save` and `load` write and read it, `starting` begins another model with its weights.
"""

from typing import TYPE_CHECKING

from mmfm.bundle.contents import READER

if TYPE_CHECKING:
    from mmfm.config import Model
    from mmfm.model import UnifiedModel

__all__ = ["READER", "start"]


def start(core: "UnifiedModel", cfg: "Model") -> None:
    """The weights of those parts of `cfg` that name a bundle, into a fresh model; without torch until it is called."""
    from mmfm.bundle.starting import start_all

    start_all(core, cfg)
