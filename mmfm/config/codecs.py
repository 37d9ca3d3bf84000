"""Codecs: what turns a picture or a sound into codes of the shared vocabulary, and back."""

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

from mmfm.config.base import Checked, positive, require
from mmfm.config.encoders import AudioPreprocess, ImagePreprocess
from mmfm.config.towers import Mel


def _check_levels(owner: "ImageCodec | AudioCodec") -> None:
    name = type(owner).__name__
    require(bool(owner.levels), f"{name}.levels is empty; give the levels of each dimension, such as 8, 5, 5, 5")
    require(min(owner.levels) > 1, f"{name}.levels={owner.levels}: each dimension needs at least 2 levels")
    require(prod(owner.levels) <= 2**16, f"{name}.levels={owner.levels} make {prod(owner.levels)} codes; at most 65536")


@dataclass(frozen=True, kw_only=True)
class ImageCodec(Checked):
    """A convolutional autoencoder over square patches, quantised to a finite scalar grid (arXiv 2309.15505)."""

    height_px: int = 224
    width_px: int = 224
    resize_mode: Literal["stretch", "crop", "shortest"] = "stretch"
    channels: int = 3
    patch_px: int = 16  # one code stands for so many pixels each way; a power of two
    levels: tuple[int, ...] = (8, 5, 5, 5)  # of each dimension of a code; their product is how many codes there are
    width: int = 64  # of the widest convolutions
    depth: int = 2  # residual blocks at the codes' resolution
    adversarial: float = 0.0  # weight of a discriminator that learns to tell what is decoded from what is real
    weights: str = ""  # a run's folder whose codec this is, used as it is; empty: learned here

    def __post_init__(self) -> None:
        positive(self, "height_px", "width_px", "channels", "patch_px", "width", "depth")
        require(self.adversarial >= 0, f"ImageCodec.adversarial={self.adversarial} must not be negative")
        require(self.patch_px & (self.patch_px - 1) == 0, f"ImageCodec.patch_px={self.patch_px} is no power of two")
        for name in ("height_px", "width_px"):
            size = getattr(self, name)
            require(
                size % self.patch_px == 0, f"ImageCodec.{name}={size} must be a multiple of patch_px={self.patch_px}"
            )
        _check_levels(self)

    @cached_property
    def pixels(self) -> ImagePreprocess:
        """What it expects of a picture."""
        return ImagePreprocess(
            height_px=self.height_px, width_px=self.width_px, channels=self.channels, resize_mode=self.resize_mode
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each of its books has; books take turns."""
        return (prod(self.levels),)

    @property
    def length(self) -> int:
        """How many codes a picture has."""
        return self.height_px // self.patch_px * (self.width_px // self.patch_px)


@dataclass(frozen=True, kw_only=True)
class AudioCodec(Checked):
    """An autoencoder of log-mel frames with a finite scalar grid; a vocoder makes the sound from the frames."""

    mel: Mel = field(default_factory=Mel)
    frame_stack: int = 4  # frames that one step of codes stands for
    num_codebooks: int = 1  # codes of a step, each of `levels`
    levels: tuple[int, ...] = (8, 5, 5, 5)
    width: int = 128
    depth: int = 2
    scales: tuple[int, ...] = (1,)  # its frames should be right one by one, and in means of so many
    adversarial: float = 0.0  # as for ImageCodec
    weights: str = ""  # as for ImageCodec

    def __post_init__(self) -> None:
        positive(self, "frame_stack", "num_codebooks", "width", "depth")
        require(self.adversarial >= 0, f"AudioCodec.adversarial={self.adversarial} must not be negative")
        require(bool(self.scales) and min(self.scales) > 0, f"AudioCodec.scales={self.scales} must be 1 or more each")
        _check_levels(self)

    @cached_property
    def sound(self) -> AudioPreprocess:
        """What it expects of a sound."""
        return AudioPreprocess(rate_hz=self.mel.rate_hz)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (prod(self.levels),) * self.num_codebooks

    @property
    def length(self) -> int:
        """0: as many as the sound is long."""
        return 0


@dataclass(frozen=True, kw_only=True)
class KnownCodec(Checked):
    """A codec of transformers (DAC, Mimi, EnCodec; Janus's and Emu3's for pictures), used as it is."""

    source: str  # "hf:NAME", or a folder that transformers wrote
    weights: Literal["pretrained", "random"] = "pretrained"
    num_codebooks: int = 0  # only so many of its codebooks: a lower rate; 0: all
    height_px: int = 0  # of pictures; 0: as its architecture says
    width_px: int = 0
    architecture: str = ""  # JSON; this and what follows are written by training; leave them out
    sizes: tuple[int, ...] = ()  # of the books in use
    length: int = 0  # codes of a picture
    pixels: ImagePreprocess | None = None  # what it expects of a picture, or of a sound
    sound: AudioPreprocess | None = None

    def __post_init__(self) -> None:
        require(
            min(self.num_codebooks, self.height_px, self.width_px) >= 0, "KnownCodec: books and sizes are at least 0"
        )
