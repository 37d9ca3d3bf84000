"""Adapters: what a few new numbers add to linear layers whose own weights rest."""

from dataclasses import dataclass, replace
from typing import Literal

from mmfm.config.base import Checked, positive, require

Base = Literal["fp32", "bf16", "int8", "nf4", "q4_1"]


@dataclass(frozen=True, kw_only=True)
class Lora(Checked):
    """Low-rank adapters (arXiv 2106.09685) of the linear layers whose full names a pattern matches, such as "trunk.*"
    or "trunk.blocks.*.attn.qkv"; * is any text.

    The part that holds them, the trunk with a language model's tables or a tower, is locked; the adapters learn, and
    so does what a group of `optim.param_groups` names that matches no adapter.
    """

    pattern: str = "trunk.*"
    rank: int = 8
    alpha: float = 16.0  # what the adapters add is times alpha / rank
    scaling: Literal["standard", "rs"] = "standard"  # "rs": times alpha / sqrt(rank) (arXiv 2312.03732)
    dora: bool = False  # the length of each row of the sum is learned apart (arXiv 2402.09353)
    dropout: float = 0.0  # of what the adapters read
    # how the locked weights are kept: "int8" with a scale for each row, "nf4" (arXiv 2305.14314) in blocks of 64,
    # "q4_1" in the blocks of 32 that the source was in already, so that they stay the same to the bit
    base: Base = "fp32"
    weights: str = ""  # a folder of PEFT in which they begin (`mmfm.from_peft`); empty: fresh ones

    def __post_init__(self) -> None:
        positive(self, "rank", "alpha")
        require(bool(self.pattern), 'Lora.pattern is empty; "trunk.*" is all linear layers of the trunk')
        require(0 <= self.dropout < 1, f"Lora.dropout={self.dropout} must be at least 0 and below 1")

    @property
    def factor(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.scaling == "rs" else self.rank)


def same_adapters(some: tuple[Lora, ...], others: tuple[Lora, ...]) -> bool:
    """Whether the matrices of one are those of the other, which may drop otherwise and have begun elsewhere."""
    plain = ([replace(lora, weights="", dropout=0.0) for lora in loras] for loras in (some, others))
    return next(plain) == next(plain)
