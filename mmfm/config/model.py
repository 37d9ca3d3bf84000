"""A model: towers, one shared token space, one trunk."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from mmfm.config.adapters import Lora
from mmfm.config.base import MODALITIES, Checked, positive, require
from mmfm.config.chat import ChatTemplate, Embedded
from mmfm.config.codecs import AudioCodec, ImageCodec, KnownCodec
from mmfm.config.encoders import Tower
from mmfm.config.modalities import Modality
from mmfm.config.projectors import Projector, check_projectors
from mmfm.config.towers import Conformer, TextTower, Trunk, Vit


@dataclass(frozen=True, kw_only=True)
class Model(Checked):
    """Towers, one shared token space, one trunk. A tower of None means that the modality cannot be a source."""

    image: Vit | Tower | None = field(default_factory=Vit)
    audio: Conformer | Tower | None = field(default_factory=Conformer)
    text: TextTower | Tower | Embedded | None = field(default_factory=TextTower)
    modalities: tuple[Modality, ...] = ()  # of one's own, which are read alone (mmfm/config/modalities.py)
    trunk: Trunk = field(default_factory=Trunk)
    # of a picture in a conversation that is larger than its tower reads, at most so many parts are read too; 0: none
    tiles: int = 0
    chat: ChatTemplate | None = None  # how the messages of a conversation become tokens; None: it reads none
    tokenizer: str = "bytes"  # "bytes" or the path of a tokenizer.json of Hugging Face `tokenizers`
    image_codec: ImageCodec | KnownCodec | None = None  # what writes pictures; None: they are read only
    audio_codec: AudioCodec | KnownCodec | None = None
    image_codes: int = 0  # reserved ranges of the shared vocabulary; 0: as many as the codec has
    audio_codes: int = 0
    embed_dim: int = 384
    dropout: float = 0.0
    connector_dropout: float = 0.0  # of the channels of a tower's tokens, before they enter the trunk
    adapters: tuple[Lora, ...] = ()  # of linear layers, whose part of the model is then locked
    projectors: tuple[Projector, ...] = ()  # from towers to the trunk, one a modality; without one a linear map

    def __post_init__(self) -> None:
        positive(self, "embed_dim")
        for name in ("dropout", "connector_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"Model.{name}={value} must be at least 0 and below 1")
        require(min(self.image_codes, self.audio_codes) >= 0, "Model: image_codes and audio_codes must not be negative")
        told = f"Model.tiles={self.tiles} must be 0, or at least 2 parts of a picture, which a tower of pictures reads"
        require(self.tiles == 0 or (self.tiles > 1 and self.image is not None), told)
        names = [part.name for part in self.modalities]
        require(len(names) == len(set(names)), f"Model.modalities: one is given twice: {', '.join(names)}")
        told = "Trunk.depth=0 makes a dual encoder, whose towers each give one token: Tower(pool='mean' or 'source')"
        for name, part in self.towers.items():
            one = isinstance(part, Tower) and part.pool != "none"
            require(self.trunk.depth > 0 or one, f"{told}; that of {name} does not, so give the trunk a layer")
        for name, codec in self.codecs.items():
            needed, room = sum(codec.sizes), self.codes(name)
            require(room >= needed, f"Model.{name}_codes={room} are too few for the {needed} codes of {name}_codec")
        check_projectors(self.projectors, self.towers, self.trunk.width)

    @property
    def towers(self) -> "dict[str, Vit | Conformer | TextTower | Tower | Embedded | Modality]":
        """What reads each modality that can be a source, by name, those of one's own last."""
        found = {"image": self.image, "audio": self.audio, "text": self.text}
        return {name: part for name, part in found.items() if part is not None} | self.own

    def reading(self, modalities: Collection[str]) -> "Model":
        """The model with these towers and no others."""
        gone = {name: None for name in MODALITIES if name not in modalities}
        return replace(
            self,
            **gone,
            modalities=tuple(part for part in self.modalities if part.name in modalities),
            projectors=tuple(part for part in self.projectors if part.modality in modalities),
        )

    @property
    def own(self) -> dict[str, Modality]:
        """The modalities of one's own, by name."""
        return {part.name: part for part in self.modalities}

    @property
    def codecs(self) -> "dict[str, ImageCodec | AudioCodec | KnownCodec]":
        """What writes each modality but text."""
        found = {"image": self.image_codec, "audio": self.audio_codec}
        return {name: codec for name, codec in found.items() if codec is not None}

    def codes(self, modality: str) -> int:
        """The size of this modality's range of the shared vocabulary; of pictures and sounds."""
        reserved = {"image": self.image_codes, "audio": self.audio_codes}[modality]
        return reserved or (sum(self.codecs[modality].sizes) if modality in self.codecs else 0)
