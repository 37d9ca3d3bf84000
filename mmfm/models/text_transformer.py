"""A text transformer: bidirectional with rotary positions, of any length, padded only to the batch's longest.

With other choices of `config.TextTower` it is CLIP's (causal, learned positions) or SigLIP's. It gives every token's
state; which of them stands for the text is the trunk's business.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.config import UserError
from mmfm.data.batch import Tokens
from mmfm.models.dropout import DropoutKey
from mmfm.models.layers import KeyMask, encoder_block, key_mask, positions_of, rotary_cos_sin
from mmfm.models.packing import Packed, Places, pack, pad_packed, real_places, worth_packing
from mmfm.models.varlen import Visibility, takes_kernel


class TextTransformer(nn.Module):
    """Token ids in, one token each out."""

    def __init__(self, cfg: config.TextTower, vocabulary: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.head_dim, self.causal, self.context = (
            cfg.width,
            cfg.width // cfg.heads,
            cfg.causal,
            cfg.context,
        )
        self.hidden = vocabulary  # one more row: what a masked token is
        self.embedding = nn.Embedding(vocabulary + 1, cfg.width)
        self.position = nn.Parameter(cfg.width**-0.5 * torch.randn(cfg.context, cfg.width)) if cfg.context else None
        self.blocks = nn.ModuleList(
            encoder_block(cfg.width, cfg.heads, dropout, hidden=cfg.hidden, eps=cfg.eps, activation=cfg.activation)
            for _ in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)

    def forward(
        self,
        ids: Int[Tensor, "batch time"],
        keep: Bool[Tensor, "batch time"],
        seeds: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Tokens:
        """`seeds`: of dropout, one for each row. Texts of several lengths pass the blocks as one row of real tokens;
        where none is, the output is zero. lengths: of the texts, on the CPU; None: the device is asked."""
        if self.position is not None and ids.shape[1] > self.context:
            raise UserError(f"a text of {ids.shape[1]} tokens exceeds TextTower.context={self.context}; cut it")
        places, rows = positions_of(keep), None if seeds is None else seeds[:, None]
        if not worth_packing(keep):
            return Tokens(self._read(ids, self._mask(keep), places, rows) * keep.unsqueeze(-1), keep)
        real = real_places(keep, lengths)
        row = pack([Places(real, self._visibility(real))], ids.device, takes_kernel(self.norm.weight, self.head_dim))
        rows = None if rows is None else row.of(rows.expand_as(keep))
        x = self._read(row.of(ids), row.packed, row.of(places), rows)
        return Tokens(pad_packed(x[0], row.source, (keep.shape[0], keep.shape[1])), keep)

    def _read(
        self,
        ids: Int[Tensor, "batch time"],
        mask: KeyMask | Packed,
        places: Int[Tensor, "batch time"],
        seeds: Int[Tensor, "batch #time"] | None,
    ) -> Float[Tensor, "batch time width"]:
        x = self.embedding(ids)
        turn = rotary_cos_sin(places, self.head_dim) if self.position is None else None
        if self.position is not None:
            x = x + self.position[places]
        noise = None if seeds is None else DropoutKey(seeds, places)
        for block in self.blocks:
            x = block(x, mask, turn, noise=noise)
        return self.norm(x)

    def _visibility(self, keep: Bool[Tensor, "batch time"]) -> Visibility | None:
        """Who sees whom among the tokens of a packed text, where not all see all."""
        if not self.causal:
            return None
        return Visibility(torch.zeros_like(keep, dtype=torch.int64), torch.ones_like(keep), torch.zeros_like(keep))

    def _mask(self, keep: Bool[Tensor, "batch time"]) -> KeyMask:
        mask, time = key_mask(keep), keep.shape[1]
        return mask & torch.ones(time, time, dtype=torch.bool, device=keep.device).tril() if self.causal else mask
