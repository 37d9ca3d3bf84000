"""A model: towers, one shared token space, one trunk."""

from dataclasses import dataclass, field

from mmfm.config.base import positive, require
from mmfm.config.encoders import Tower
from mmfm.config.towers import Conformer, TextTower, Trunk, Vit


@dataclass(frozen=True, kw_only=True)
class Model:
    """Towers, one shared token space, one trunk. A tower of None means that the modality cannot be a source."""

    image: Vit | Tower | None = field(default_factory=Vit)
    audio: Conformer | Tower | None = field(default_factory=Conformer)
    text: TextTower | Tower | None = field(default_factory=TextTower)
    trunk: Trunk = field(default_factory=Trunk)
    tokenizer: str = "bytes"  # "bytes" or the path of a tokenizer.json of Hugging Face `tokenizers`
    image_codes: int = 0  # reserved ranges of the shared vocabulary
    audio_codes: int = 0
    embed_dim: int = 384
    dropout: float = 0.0
    connector_dropout: float = 0.0  # of the channels of a tower's tokens, before they enter the trunk

    def __post_init__(self) -> None:
        positive(self, "embed_dim")
        for name in ("dropout", "connector_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"Model.{name}={value} must be at least 0 and below 1")
        require(min(self.image_codes, self.audio_codes) >= 0, "Model: image_codes and audio_codes must not be negative")
