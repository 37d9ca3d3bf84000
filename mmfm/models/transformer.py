"""The unified transformer. It reads a sentence of segments: sources first, each seen whole, then a causal target.

A segment sees itself and all before it, so the first source is the same whatever follows. Positions count real tokens
only. The shape is Llama's, so that a pretrained causal language model can stand here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.config import UserError
from mmfm.data.batch import Tokens
from mmfm.models.dropout import DropoutKey
from mmfm.models.kv_cache import KVCache, LayerCache
from mmfm.models.layers import KeyMask, decoder_block, rotary_cos_sin
from mmfm.models.packing import Packed, Places, pack
from mmfm.models.read_counts import ReadCounts
from mmfm.models.varlen import Visibility, take, takes_kernel
from mmfm.runtime.transfer import to_device


class Segment(NamedTuple):
    """Tokens that enter together. A causal one (the target) sees itself only backwards.

    hidden: rows in which no other segment sees this one, as if it were not there. shown: the tokens that any token
    sees; None: all that are real. Positions count the others too, so that what stays keeps its own. blocks: of a causal
    one, the places that are seen as a whole: a number above 0 for each run of them, 0 for what sees only backwards.
    """

    tokens: Tokens
    causal: bool = False
    hidden: Bool[Tensor, " batch"] | None = None
    shown: Bool[Tensor, "batch time"] | None = None
    known: Bool[Tensor, "batch time"] | None = None
    blocks: Int[Tensor, "batch time"] | None = None

    def planned(self) -> "Segment":
        """The same with `keep` on the CPU, for `packed` to count."""
        keep = self.tokens.keep.cpu() if self.known is None else self.known
        return self._replace(tokens=self.tokens._replace(keep=keep))


def sees(segments: Sequence[Segment]) -> Bool[Tensor, "query key"]:
    """Which place may look at which, before padding."""
    lengths = [segment.tokens.keep.shape[1] for segment in segments]
    device = segments[0].tokens.keep.device
    total = sum(lengths)
    allowed = torch.zeros(total, total, dtype=torch.bool, device=device)
    start = 0
    for length, segment in zip(lengths, segments, strict=True):
        stop = start + length
        own = torch.ones(length, length, dtype=torch.bool, device=device)
        allowed[start:stop, :start] = True
        allowed[start:stop, start:stop] = own.tril() if segment.causal else own
        start = stop
    return allowed


class Sentences(NamedTuple):
    """What one pass reads: its segments, and a number for each row that decides its dropout (None: as torch draws).

    wanted: the places whose states are used, all of them seen by some token; None: all that are.
    """

    segments: Sequence[Segment]
    seeds: Int[Tensor, " batch"] | None = None
    wanted: Bool[Tensor, "batch time"] | None = None


class UnifiedTransformer(nn.Module):
    def __init__(self, cfg: config.Trunk, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.head_dim = cfg.width, cfg.head_dim or cfg.width // cfg.heads
        self.rope, self.window, self.tied = (
            (cfg.rope_theta, cfg.rope_scaling),
            cfg.max_position_embeddings,
            cfg.tie_embeddings,
        )
        self.blocks = nn.ModuleList(
            decoder_block(
                cfg.width,
                cfg.heads,
                cfg.kv_heads,
                cfg.hidden or round(cfg.mlp_ratio * cfg.width),
                dropout,
                dim=self.head_dim,
                eps=cfg.eps,
                qkv_bias=cfg.qkv_bias,
                out_bias=cfg.out_bias,
                qk_norm=cfg.qk_norm,
                activation=cfg.activation,
            )
            for _ in range(cfg.depth)
        )
        self.norm = nn.RMSNorm(cfg.width, eps=cfg.eps)
        self.read_counts = ReadCounts()

    def forward(
        self, segments: Sequence[Segment], cache: KVCache | None = None, seeds: Int[Tensor, " batch"] | None = None
    ) -> list[Float[Tensor, "batch time width"]]:
        """The normed states of each segment. With a cache, all that it holds comes before and is seen by all.

        `seeds`: of dropout, one for each row.
        """
        x = torch.cat([segment.tokens.x for segment in segments], dim=1)
        keep = torch.cat([segment.tokens.keep for segment in segments], dim=1)
        counts = keep.long().cumsum(1)
        if cache is not None and cache.count is not None:
            counts = counts + cache.count[:, None]
        most = self._longest(counts)
        self.check_window(most)
        visible = _visible(segments)
        mask = self._mask(segments, visible, None if cache is None else cache.past)
        positions = (counts - 1).clamp(min=0)
        noise = None if seeds is None else DropoutKey(seeds[:, None], positions)
        x = self.run(x, mask, positions, None if cache is None else cache.layers, noise)
        if cache is not None:
            seen = visible & ~_hidden(segments)
            cache.extend(seen, counts[:, -1], bool(seen.all()))
            cache.most = int(most)
        return list(x.split([segment.tokens.keep.shape[1] for segment in segments], dim=1))

    def packed(self, passes: Sequence[Sentences]) -> tuple[Float[Tensor, "m width"], list[Int[Tensor, "batch time"]]]:
        """`forward` of several passes as one row of real tokens: the normed states, and for each pass which of them
        stands where, on the CPU. Tokens that none sees or wants have no state: their place is of another.

        The last block makes keys and values of all tokens, and all else only for those that are wanted.
        """
        segments = [[part.planned() for part in item.segments] for item in passes]
        x = torch.cat([torch.cat([part.tokens.x for part in parts], dim=1).flatten(0, 1) for parts in segments])
        keeps = [torch.cat([part.tokens.keep for part in parts], dim=1) for parts in segments]
        counts = [keep.long().cumsum(1) for keep in keeps]
        tables = [Places(_visible(parts), _visibility(parts)) for parts in segments]
        row = pack(tables, x.device, takes_kernel(x, self.head_dim))
        if self.window:
            self.check_window(max(int(count[:, -1].max()) for count in counts))
        each = [torch.cat([(count - 1).clamp(min=0).flatten() for count in counts])]
        seeds = [item.seeds for item in passes if item.seeds is not None]
        if len(seeds) == len(passes):
            numbers = (seed.cpu()[:, None].expand_as(keep) for seed, keep in zip(seeds, keeps, strict=True))
            each.append(torch.cat([one.flatten() for one in numbers]))
        positions, *rows = (one[None] for one in to_device(torch.stack(each)[:, row.known], x.device))
        noise = DropoutKey(rows[0], positions) if rows else None
        wants = [item.wanted for item in passes]
        flags = [torch.ones_like(keep) if want is None else want for want, keep in zip(wants, keeps, strict=True)]
        wanted = torch.cat([flag.flatten() for flag in flags])[row.known]
        kept = (wanted.cumsum(0) - 1).clamp(min=0)
        only = to_device(wanted.nonzero().squeeze(1), x.device)
        if not len(row.source):  # none is real: one token of zeros goes through all weights, and no state comes out
            one, seen = x.new_zeros(1, 1, self.width) + x.sum(), x.new_ones(1, 1, 1, 1, dtype=torch.bool)
            return self.run(one, seen, positions.new_zeros(1, 1))[0, :0], row.where
        pairs, places = sum(n * n for n in row.lengths), row.packed.places
        self.read_counts.add(
            "trunk", items=len(row.lengths), places=places, tokens=len(row.source), pairs=pairs, wanted=len(only)
        )
        x = self.run(take(x, row.source)[None], row.packed, positions, noise=noise, only=only)
        return x[0], [kept[where] for where in row.where] if len(kept) else row.where

    def step(self, x: Float[Tensor, "batch 1 width"], cache: KVCache) -> Float[Tensor, "batch 1 width"]:
        """`forward` of one real, causal token for each row, without what only longer segments need."""
        turn, mask = self.next(len(x), cache)
        return self._blocks(x, mask, turn, cache.layers)

    def next(
        self, rows: int, cache: KVCache
    ) -> tuple[tuple[Float[Tensor, "batch 1 1 half"], Float[Tensor, "batch 1 1 half"]], KeyMask | None]:
        """How the next real token of each row is turned, and which keys it sees (None: all). The cache counts it."""
        if self.window and cache.most + 1 > self.window and cache.count is not None:
            cache.most = int(cache.count.max())  # rows may have left since
        cache.most += 1
        self.check_window(cache.most)
        device = self.norm.weight.device
        if cache.count is None:
            cache.count = torch.zeros(rows, dtype=torch.int64, device=device)
        cos, sin = self._turns(cache, device)
        turn = (cos[cache.count][:, None, None], sin[cache.count][:, None, None])
        cache.extend(torch.ones(rows, 1, dtype=torch.bool, device=device), cache.count + 1, True)
        past = cache.past
        return turn, None if cache.all_seen or past is None else past[:, None, None]

    def _turns(
        self, cache: KVCache, device: torch.device
    ) -> tuple[Float[Tensor, "room half"], Float[Tensor, "room half"]]:
        if cache.turns is None or len(cache.turns[0]) <= cache.length:
            places = torch.arange(max(cache.room, 2 * (cache.length + 1)), device=device)
            cos, sin = rotary_cos_sin(places[None], self.head_dim, *self.rope)
            cache.turns = cos[0, 0], sin[0, 0]
        return cache.turns

    def _longest(self, counts: Int[Tensor, "batch time"]) -> int | torch.SymInt:
        """Real tokens of the longest row, so that padding does not count; where an export traces it, a symbol for all.

        Only a window asks for it: it makes the host wait for the device.
        """
        if not self.window or torch.compiler.is_compiling() or not counts.numel():
            return counts.shape[1]
        return int(counts[:, -1].max())

    def check_window(self, length: int | torch.SymInt) -> None:
        """UserError where a sentence of so many real tokens is more than the trunk may read."""
        if self.window and length > self.window:
            raise UserError(
                f"a sentence of {length} tokens is longer than Trunk.max_position_embeddings={self.window}, beyond "
                "which the source of this trunk did not look back; give shorter ones"
            )

    def run(
        self,
        x: Float[Tensor, "batch time width"],
        mask: KeyMask | Packed,
        positions: Int[Tensor, "batch time"],
        layers: Sequence[LayerCache] | None = None,
        noise: DropoutKey | None = None,
        only: Int[Tensor, " some"] | None = None,
    ) -> Float[Tensor, "batch m width"]:
        """The normed states of tokens at these positions. `layers`: of a cache, one for each block. only: the tokens of
        one row whose states are wanted; None: all."""
        return self._blocks(x, mask, rotary_cos_sin(positions, self.head_dim, *self.rope), layers, noise, only)

    def _blocks(
        self,
        x: Float[Tensor, "batch time width"],
        mask: KeyMask | Packed | None,
        turn: tuple[Tensor, Tensor],
        layers: Sequence[LayerCache] | None = None,
        noise: DropoutKey | None = None,
        only: Int[Tensor, " some"] | None = None,
    ) -> Float[Tensor, "batch m width"]:
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, mask, turn, None if layers is None else layers[i], noise, only if i == last else None)
        return self.norm(x if self.blocks or only is None else x[:, only])

    @staticmethod
    def _mask(
        segments: Sequence[Segment], keep: Bool[Tensor, "batch time"], past: Bool[Tensor, "batch past"] | None
    ) -> KeyMask:
        if len(segments) == 1 and not segments[0].causal and segments[0].hidden is None:
            mask = keep[:, None, :]  # all see all that is real: no square of a long text is kept for that
        else:
            mask = sees(segments) & keep[:, None, :]
        stop, places = 0, torch.arange(keep.shape[1], device=keep.device)
        for segment in segments:
            start, stop = stop, stop + segment.tokens.keep.shape[1]
            if segment.blocks is not None:
                own = (segment.blocks[:, :, None] == segment.blocks[:, None]) & (segment.blocks[:, :, None] > 0)
                mask[:, start:stop, start:stop] |= own & keep[:, None, start:stop]
            if segment.hidden is not None:
                others = (places < start) | (places >= stop)
                mask[:, :, start:stop] &= ~(segment.hidden[:, None, None] & others[None, :, None])
        if past is not None:
            mask = torch.cat([past[:, None, :].expand(-1, mask.shape[1], -1), mask], dim=2)
        return mask.unsqueeze(1)

    def new_cache(self, room: int = 0) -> KVCache:
        """`room`: how many tokens are expected, if that is known; more have room too."""
        return KVCache(len(self.blocks), room)


def _visible(segments: Sequence[Segment]) -> Bool[Tensor, "batch time"]:
    """Tokens that are real and shown."""
    parts = (part.tokens.keep if part.shown is None else part.tokens.keep & part.shown for part in segments)
    return torch.cat([*parts], dim=1)


def _hidden(segments: Sequence[Segment]) -> Bool[Tensor, "batch time"]:
    """Places of segments that are hidden from those to come."""
    parts = ((part.tokens.keep, part.hidden) for part in segments)
    return torch.cat([torch.zeros_like(k) if h is None else h[:, None].expand_as(k) for k, h in parts], dim=1)


def _visibility(segments: Sequence[Segment]) -> Visibility:
    """What `sees` says, place by place."""
    numbers, causal, first = [], [], 0
    for part in segments:
        blocks = torch.zeros_like(part.tokens.keep, dtype=torch.int64) if part.blocks is None else part.blocks
        changed = F.pad(blocks[:, 1:] != blocks[:, :-1], (1, 0))[:, : blocks.shape[1]]
        numbers.append(first + changed.long().cumsum(1))
        causal.append((blocks == 0) & part.causal)
        first += blocks.shape[1] if part.blocks is not None else 1
    return Visibility(torch.cat(numbers, dim=1), torch.cat(causal, dim=1), _hidden(segments))
