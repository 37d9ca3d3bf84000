"""Projectors: a tower's tokens in the trunk's width, and perhaps fewer of them.

    tower -> [map made smaller: grid, pixel shuffle] -> norm -> linear | MLP | resampler -> trunk

A linear map of each token is `nn.Linear` itself. Gated cross-attention (the other half of Flamingo, arXiv 2204.14198)
is not among them: it gives no tokens, but needs a second path through every block of the trunk, which every cache, mask
and exported file would have to know, and the trunk would no longer be the language model that it was imported as.
"""

import functools
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.config import require
from mmfm.config.projectors import check_grid
from mmfm.data.batch import Tokens
from mmfm.models.imported import ImportedTower
from mmfm.models.layers import positions_of
from mmfm.models.vit import VisionTransformer

MOST_PREFIX = 8  # a class token, one of distillation, registers
FREQUENCIES = 32  # of the sinusoids that a place is told by
OF_GELU = 0.652  # root mean square of GELU(z), z normal


class Grid(NamedTuple):
    """A picture's tokens: `prefix` before its map of rows x columns, row by row, and `rest` behind it."""

    prefix: int
    rows: int
    columns: int
    rest: int = 0

    @property
    def tokens(self) -> int:
        return self.prefix + self.rows * self.columns + self.rest


class Map(NamedTuple):
    """What is known of a picture's tokens before they are seen: its sides in pixels, and how many tokens stand before
    its map; None: as few as there can be."""

    height: int
    width: int
    prefix: int | None

    def grid(self, tokens: int) -> Grid:
        """UserError where they make no map."""
        least, most = (0, MOST_PREFIX) if self.prefix is None else (self.prefix, self.prefix)
        found = grid_of(tokens, self.height, self.width, least, most)
        told = f"the image tower gives {tokens} tokens, which make no map of a picture of {self.height} x {self.width}"
        require(found is not None, f"{told} px; take a projector that needs none: kind='linear' or 'mlp', grid=0")
        assert found is not None
        return found


@functools.cache
def grid_of(tokens: int, height: int, width: int, least: int = 0, most: int = MOST_PREFIX) -> Grid | None:
    """The map that patches of some size make of a picture, with the fewest tokens before it; None: there is none.

    Patches that divide its sides go before those that do not, at whose ends a tower pads (rounds up) or cuts (down).
    """
    sides = range(1, max(height, width) + 1)
    exact = {(height // side, width // side) for side in sides if height % side == width % side == 0}
    padded = {(-(-height // side), -(-width // side)) for side in sides}
    cut = {(height // side, width // side) for side in sides}
    for maps in (exact, padded, cut):
        for prefix in range(least, most + 1):
            for rows, columns in maps:
                if 0 < rows * columns == tokens - prefix:
                    return Grid(prefix, rows, columns)
    return None


def map_of(tower: nn.Module) -> Map | None:
    """Of what reads pictures; None: it gives no map."""
    if isinstance(tower, VisionTransformer):
        rows, columns = tower.grid
        return Map(rows * tower.patch_px, columns * tower.patch_px, tower.prefix_length)
    if isinstance(tower, ImportedTower) and tower.contract.pixels is not None:
        return Map(tower.contract.pixels.height_px, tower.contract.pixels.width_px, None)
    return None


def pixel_shuffle(x: Float[Tensor, "batch tokens width"], grid: Grid, by: int) -> Float[Tensor, "batch fewer wider"]:
    """Each `by` x `by` tokens of the map as one, side by side, row by row (Idefics3, arXiv 2408.12637, section 3.2)."""
    x = x[:, grid.prefix :].unflatten(1, (grid.rows // by, by, grid.columns // by, by))
    return x.transpose(2, 3).flatten(1, 2).flatten(2)


def grid_pool(x: Float[Tensor, "batch tokens width"], grid: Grid, side: int) -> Float[Tensor, "batch fewer width"]:
    """The map averaged to side x side, row by row, and last the mean of all of it."""
    x = x[:, grid.prefix :]
    places = x.transpose(1, 2).unflatten(2, (grid.rows, grid.columns))
    small = averages(grid.rows, side, x) @ places @ averages(grid.columns, side, x).T
    return torch.cat([small.flatten(2).transpose(1, 2), x.mean(1, keepdim=True)], dim=1)


def averages(size: int, side: int, like: Tensor) -> Float[Tensor, "side size"]:
    """Adaptive average pooling of a row as a matrix: an exporter knows no pooling whose window does not divide."""
    start = torch.arange(side, device=like.device) * size // side
    stop = -(-(torch.arange(1, side + 1, device=like.device) * size) // side)
    at = torch.arange(size, device=like.device)
    inside = (at >= start[:, None]) & (at < stop[:, None])
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


class Places(nn.Module):
    """Learned positions of any number of tokens: a linear map of sinusoids of a token's row and column in its picture,
    or of its number among the real ones. A token before a map or behind it has none."""

    def __init__(self, width: int, axes: int) -> None:
        super().__init__()
        self.axes, self.weight = axes, nn.Linear(2 * FREQUENCIES * axes, width, bias=False)

    def forward(self, tokens: Tokens, grid: Grid | None) -> Float[Tensor, "#batch time width"]:
        if grid is None:
            return self.weight(sinusoids(positions_of(tokens.keep)).to(tokens.x.dtype))
        at = torch.arange(grid.rows * grid.columns, device=tokens.x.device)
        both = torch.cat([sinusoids(at // grid.columns), sinusoids(at % grid.columns)], dim=-1)
        return F.pad(self.weight(both.to(tokens.x.dtype)), (0, 0, grid.prefix, grid.rest))[None]


def sinusoids(places: Int[Tensor, "*any"]) -> Float[Tensor, "*any features"]:
    """Of periods from 2 pi to 20,000 pi (arXiv 1706.03762, section 3.5)."""
    rates = 10_000 ** (-torch.arange(FREQUENCIES, device=places.device) / FREQUENCIES)
    angles = places[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PerceiverLayer(nn.Module):
    """The queries read the tokens and each other, then a feed-forward layer (Flamingo, arXiv 2204.14198, appendix A.1).
    No biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_tokens, self.norm_queries = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm, self.fc1 = nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(
        self,
        queries: Float[Tensor, "batch queries width"],
        x: Float[Tensor, "batch time width"],
        seen: Bool[Tensor, "batch 1 1 keys"],
    ) -> Float[Tensor, "batch queries width"]:
        asked = self.norm_queries(queries)
        read = torch.cat([self.norm_tokens(x), asked], dim=1)
        each = (self.q(asked), *self.kv(read).chunk(2, dim=-1))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in each)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        queries = queries + self.proj(out.transpose(1, 2).flatten(2))
        return queries + self.fc2(F.gelu(self.fc1(self.norm(queries))))


class Resampler(nn.Module):
    """As many tokens as there are learned queries, whatever was read (the Perceiver resampler of Flamingo)."""

    def __init__(self, width: int, queries: int, depth: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(width**-0.5 * torch.randn(queries, width))
        self.layers = nn.ModuleList(PerceiverLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch queries width"]:
        queries = self.queries.expand(tokens.x.shape[0], -1, -1)
        seen = F.pad(tokens.keep, (0, len(self.queries)), value=True)[:, None, None]
        for layer in self.layers:
            queries = layer(queries, tokens.x, seen)
        return self.norm(queries)


class Projector(nn.Module):
    """`config.Projector` between a tower and the trunk. picture: what is known of the tower's map of a picture."""

    def __init__(self, cfg: config.Projector, width: int, out: int, picture: Map | None) -> None:
        super().__init__()
        self.cfg, self.picture = cfg, picture if cfg.reads_map else None
        width, inner = width * max(1, cfg.pixel_shuffle) ** 2, cfg.hidden or out
        self.norm = nn.LayerNorm(width) if cfg.norm else nn.Identity()
        self.enter = nn.Identity() if cfg.kind == "linear" else nn.Linear(width, inner)
        if cfg.places:
            self.places = Places(width if cfg.kind == "linear" else inner, 1 if self.picture is None else 2)
        if cfg.kind == "resampler":
            self.resampler = Resampler(inner, cfg.queries, cfg.depth, cfg.heads or _heads(inner))
        self.out = nn.Linear(width if cfg.kind == "linear" else inner, out)

    @torch.no_grad()
    def scale_start(self) -> None:
        """Of fresh weights, each of which keeps the size of what it reads: the output begins with `start_rms`, and
        without positions where it can do without."""
        if self.cfg.places and self.cfg.kind != "resampler":
            self.places.weight.weight.zero_()
        if self.cfg.start_rms:
            self.out.weight *= self.cfg.start_rms / (OF_GELU if self.cfg.kind == "mlp" else 1)

    def forward(self, tokens: Tokens) -> Tokens:
        """In the trunk's width. Padding changes nothing that is real."""
        grid = self._grid(tokens.keep)
        x = self.enter(self.norm(self._smaller(tokens.x, grid)))
        if self.cfg.places:
            x = x + self.places(Tokens(x, tokens.keep), self._smaller_grid(grid))
        if self.cfg.kind == "resampler":
            x = self.resampler(Tokens(x, tokens.keep))
        return Tokens(self.out(F.gelu(x) if self.cfg.kind == "mlp" else x), self.real(tokens.keep))

    def real(self, keep: Bool[Tensor, "batch time"]) -> Bool[Tensor, "batch fewer"]:
        """Which of its tokens are real, by which of the tower's are; on the device that this lies on."""
        count, grid = self.cfg.queries, self._smaller_grid(self._grid(keep))
        if self.cfg.kind != "resampler":
            if grid is None:
                return keep
            count = grid.tokens
        return torch.ones(keep.shape[0], count, dtype=torch.bool, device=keep.device)

    def _grid(self, keep: Bool[Tensor, "batch time"]) -> Grid | None:
        if self.picture is None:
            return None
        grid = self.picture.grid(keep.shape[1])
        check_grid(self.cfg, grid.rows, grid.columns)
        return grid

    def _smaller(self, x: Float[Tensor, "batch time width"], grid: Grid | None) -> Float[Tensor, "batch fewer wider"]:
        if grid is not None and self.cfg.grid:
            return grid_pool(x, grid, self.cfg.grid)
        return pixel_shuffle(x, grid, self.cfg.pixel_shuffle) if grid is not None and self.cfg.pixel_shuffle else x

    def _smaller_grid(self, grid: Grid | None) -> Grid | None:
        """Of the tokens that `_smaller` gives."""
        side, by = self.cfg.grid, self.cfg.pixel_shuffle
        if grid is None or not (side or by):
            return grid
        return Grid(0, side, side, 1) if side else Grid(0, grid.rows // by, grid.columns // by)


def _heads(width: int) -> int:
    """One for 64 channels, or the next fewer that divide the width."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


def connector(cfg: config.Projector | None, tower: nn.Module, out: int) -> nn.Module:
    """What stands between a tower and the trunk: a linear map, or what is configured."""
    width = cast(int, tower.width)
    return nn.Linear(width, out) if cfg is None else Projector(cfg, width, out, map_of(tower))


def connect(module: nn.Module, tokens: Tokens) -> Tokens:
    """The tower's tokens in the trunk's width."""
    return module(tokens) if isinstance(module, Projector) else Tokens(module(tokens.x), tokens.keep)


def connected(module: nn.Module, keep: Bool[Tensor, "batch time"]) -> Bool[Tensor, "batch fewer"]:
    """Which tokens of `connect` are real, by which of the tower's are."""
    return module.real(keep) if isinstance(module, Projector) else keep
