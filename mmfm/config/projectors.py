"""What brings a tower's tokens to the trunk's width, where more is wanted than a linear map of each."""

from dataclasses import dataclass
from typing import Literal

from mmfm.config.base import Checked, positive, require
from mmfm.config.chat import Embedded
from mmfm.config.encoders import Tower
from mmfm.config.modalities import Modality
from mmfm.config.towers import Conformer, TextTower, Vit

Part = Vit | Conformer | TextTower | Tower | Embedded | Modality


@dataclass(frozen=True, kw_only=True)
class Projector(Checked):
    """Maps the tokens of a modality's tower to the trunk's width (mmfm/models/projectors.py), perhaps to fewer tokens.

    `grid` and `pixel_shuffle` read a picture's map of patches; tokens before it (class token, registers) are left out.
    """

    modality: str = "image"
    # "mlp": two linear maps with GELU between (LLaVA-1.5); "resampler": learned queries read all tokens (Flamingo)
    kind: Literal["linear", "mlp", "resampler"] = "linear"
    hidden: int = 0  # width inside an MLP or a resampler; 0: the trunk's
    norm: bool = False  # a LayerNorm of what is read, before anything is learned of it
    grid: int = 0  # 4: a picture's map averaged to 4 x 4 tokens, and its mean as one more; 0: the map as it is
    pixel_shuffle: int = 0  # 2: each 2 x 2 tokens of a picture's map as one, side by side (Idefics3, InternVL); 0: none
    positions: bool = False  # learned, by row and column, or by number; a resampler always has them
    queries: int = 64  # tokens that a resampler gives
    depth: int = 2  # layers of a resampler
    heads: int = 0  # of a resampler's attention; 0: as many as divide its width, one for 64 channels
    start_rms: float = 0.0  # root mean square of what it gives before it has learned anything; 0: about 1

    def __post_init__(self) -> None:
        positive(self, "queries", "depth")
        for name in ("hidden", "grid", "pixel_shuffle", "heads", "start_rms"):
            require(getattr(self, name) >= 0, f"Projector.{name}={getattr(self, name)} must not be negative")
        require(self.pixel_shuffle != 1, "Projector.pixel_shuffle=1 joins nothing; set 2 or more, or 0 for none")
        told = (
            f"Projector: grid={self.grid} and pixel_shuffle={self.pixel_shuffle} both make a map smaller; set one to 0"
        )
        require(not (self.grid and self.pixel_shuffle), told)
        told = "Projector: a resampler gives as many tokens as it has queries; set grid and pixel_shuffle to 0"
        require(self.kind != "resampler" or not (self.grid or self.pixel_shuffle), told)
        told = f"Projector: hidden={self.hidden} is the width inside an MLP or a resampler; set it to 0, or kind"
        require(not self.hidden or self.kind != "linear", told)
        told = f"Projector: start_rms={self.start_rms} needs to know the size of what is read; set norm=True"
        require(not self.start_rms or self.norm or self.kind == "resampler", told)

    @property
    def reads_map(self) -> bool:
        """Whether it asks where a token stands in a picture."""
        return self.modality == "image" and bool(self.grid or self.pixel_shuffle or self.places)

    @property
    def places(self) -> bool:
        """Whether a token is told where it stands."""
        return self.positions or self.kind == "resampler"

    def given(self, tokens: int | float, prefix: int = 0) -> int | float:
        """How many tokens it gives of so many, of which `prefix` stand before a picture's map."""
        if self.kind == "resampler":
            return self.queries
        if self.grid:
            return self.grid**2 + 1
        return (tokens - prefix) / self.pixel_shuffle**2 if self.pixel_shuffle else tokens


def given_tokens(projectors: tuple[Projector, ...], modality: str, tokens: int | float, prefix: int = 0) -> int | float:
    """How many tokens the trunk is given of a tower's so many, of which `prefix` stand before a picture's map."""
    own = next((one for one in projectors if one.modality == modality), None)
    return tokens if own is None else own.given(tokens, prefix)


def check_projectors(projectors: tuple[Projector, ...], towers: dict[str, Part], trunk_width: int) -> None:
    """UserError for one without a tower, two of one modality, or a map that cannot be cut as is asked."""
    names = [one.modality for one in projectors]
    require(len(names) == len(set(names)), f"Model.projectors: one modality has two: {', '.join(names)}")
    for one in projectors:
        told = f"Model.projectors: there is no tower for {one.modality!r}; give it one, or leave the projector out"
        require(one.modality in towers, told)
        tower = towers[one.modality]
        told = "Model.projectors: text that the trunk's own table reads (Embedded) has none; leave it out"
        require(not isinstance(tower, Embedded), told)
        told = f"Projector of {one.modality}: grid and pixel_shuffle are of pictures; for sounds, see Tower.frame_stack"
        require(one.modality == "image" or not (one.grid or one.pixel_shuffle), told)
        width = one.hidden or trunk_width
        told = f"Projector.heads={one.heads} is no divisor of its width {width}; set 0"
        require(one.kind != "resampler" or not one.heads or width % one.heads == 0, told)
        if one.reads_map:
            _check_map(one, tower)


def _check_map(one: Projector, tower: Part) -> None:
    """As far as it is known before the tower runs."""
    if isinstance(tower, Tower):
        joined = tower.frame_stack > 1 or tower.pool != "none"
        told = "this projector reads a map of patches, which Tower.frame_stack and Tower.pool undo; leave one out"
        require(not joined, told)
    if isinstance(tower, Vit):
        check_grid(one, *tower.grid)


def check_grid(one: Projector, rows: int, columns: int) -> None:
    """That a map of so many patches can be made smaller as it is asked."""
    told = f"Projector.grid={one.grid} is more than the {rows} x {columns} patches of the picture; set it lower"
    require(one.grid <= min(rows, columns), told)
    by = one.pixel_shuffle or 1
    told = f"Projector.pixel_shuffle={by} does not divide the {rows} x {columns} patches of the picture; set another"
    require(rows % by == columns % by == 0, told)
