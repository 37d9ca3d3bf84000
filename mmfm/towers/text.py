"""A bidirectional text transformer with rotary positions: any length, padded only to the batch's longest."""

from jaxtyping import Bool, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.batch import Tokens
from mmfm.layers import Noise, encoder_block, key_mask, positions_of, rotary


class TextTransformer(nn.Module):
    """Token ids in, one token each out."""

    def __init__(self, cfg: config.TextTower, vocabulary: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.head_dim = cfg.width, cfg.width // cfg.heads
        self.hidden = vocabulary  # one more row: what a masked token is
        self.embedding = nn.Embedding(vocabulary + 1, cfg.width)
        self.blocks = nn.ModuleList(encoder_block(cfg.width, cfg.heads, dropout) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)

    def forward(
        self,
        ids: Int[Tensor, "batch time"],
        keep: Bool[Tensor, "batch time"],
        seeds: Int[Tensor, " batch"] | None = None,
    ) -> Tokens:
        """`seeds`: of dropout, one for each row."""
        x, mask, places = self.embedding(ids), key_mask(keep), positions_of(keep)
        turn = rotary(places, self.head_dim)
        noise = None if seeds is None else Noise(seeds, places)
        for block in self.blocks:
            x = block(x, mask, turn, noise=noise)
        return Tokens(self.norm(x), keep)
