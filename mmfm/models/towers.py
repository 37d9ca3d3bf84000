"""The tower of each modality by its configuration: our own, imported ones, and those that need no module of theirs."""

from jaxtyping import Bool
from torch import Tensor, nn

from mmfm import config
from mmfm.data.batch import Tokens
from mmfm.models.conformer import AudioConformer
from mmfm.models.imported import ImportedTower
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.vit import VisionTransformer


class OwnTower(nn.Module):
    """The tower of a modality of one's own: whatever module gives tokens of the width that it said."""

    def __init__(self, part: config.Modality) -> None:
        super().__init__()
        self.inner, self.width = part.tower(), part.width

    def forward(self, x: Tensor, keep: Bool[Tensor, "n time"]) -> Tokens:
        tokens = Tokens(*self.inner(x, keep))
        told = f"a tower of one's own gave tokens {tuple(tokens.x.shape)}, and not [n, tokens, width={self.width}]"
        config.require(tokens.x.ndim == 3 and tokens.x.shape[2] == self.width, told)
        return tokens


class EmbeddedText(nn.Module):
    """Texts as the trunk's own table has them, read in the trunk alone: `config.Embedded`."""

    def __init__(self, causal: bool, width: int) -> None:
        super().__init__()
        self.causal, self.width = causal, width


Tower = VisionTransformer | AudioConformer | TextTransformer | ImportedTower | OwnTower | EmbeddedText


def make_tower(
    part: config.Vit | config.Conformer | config.TextTower | config.Tower | config.Embedded | config.Modality,
    text_size: int,
    cfg: config.Model,
) -> Tower:
    """Freshly made; its weights are `build`'s to initialise."""
    match part:
        case config.Vit():
            return VisionTransformer(part, cfg.dropout)
        case config.Conformer():
            return AudioConformer(part, cfg.dropout)
        case config.TextTower():
            return TextTransformer(part, part.vocabulary or text_size, cfg.dropout)
        case config.Tower():
            return ImportedTower(part)
        case config.Embedded():
            return EmbeddedText(part.causal, cfg.trunk.width)
        case config.Modality():
            return OwnTower(part)
