"""The parts of a model that are built here: three towers and the trunk."""

from dataclasses import dataclass, field
from typing import Literal

from mmfm.config.base import positive, require
from mmfm.config.encoders import Pixels, Sound, Words


@dataclass(frozen=True, kw_only=True)
class Vit:
    """A vision transformer over square patches (arXiv 2010.11929)."""

    height_px: int = 224
    width_px: int = 224
    fit: Literal["stretch", "crop"] = "stretch"  # "crop": the middle of the picture, as much as has the right shape
    patch_px: int = 16
    channels: int = 3
    stem: Literal["patch", "conv"] = "patch"  # "conv": two or more strided convolutions (arXiv 2106.14881)
    width: int = 384
    depth: int = 12
    heads: int = 6
    weights: str = ""  # a folder of `mmfm import` to start from; empty: fresh ones

    def __post_init__(self) -> None:
        positive(self, "height_px", "width_px", "patch_px", "channels", "width", "depth", "heads")
        for side in (self.height_px, self.width_px):
            require(side % self.patch_px == 0, f"Vit: a side of {side} px is no multiple of patch_px={self.patch_px}")
        require(self.width % self.heads == 0, f"Vit: width={self.width} is no multiple of heads={self.heads}")
        power = self.patch_px & (self.patch_px - 1) == 0 and self.patch_px > 1
        require(self.stem == "patch" or power, f"Vit: a conv stem needs patch_px={self.patch_px} to be a power of 2")

    @property
    def pixels(self) -> Pixels:
        """What it expects of a picture."""
        return Pixels(height_px=self.height_px, width_px=self.width_px, channels=self.channels, fit=self.fit)

    @property
    def tokens(self) -> int:
        return (self.height_px // self.patch_px) * (self.width_px // self.patch_px)


@dataclass(frozen=True, kw_only=True)
class Mel:
    """How a waveform becomes a log-mel spectrogram. `high_hz` of 3800 is a telephone band, for 8 kHz recordings."""

    rate_hz: int = 16_000
    window_ms: float = 25.0
    hop_ms: float = 10.0
    bins: int = 80
    low_hz: float = 20.0
    high_hz: float = 7_600.0

    def __post_init__(self) -> None:
        positive(self, "rate_hz", "window_ms", "hop_ms", "bins")
        require(self.rate_hz <= 384_000, f"Mel.rate_hz={self.rate_hz} is over 384000, more than any recorder has")
        require(self.window_ms <= 1_000, f"Mel.window_ms={self.window_ms} is over a second; speech takes 25")
        require(self.bins <= 1_024, f"Mel.bins={self.bins} is over 1024; speech takes 80")
        require(
            self.hop_ms <= self.window_ms,
            f"Mel: hop_ms={self.hop_ms} leaves gaps: it must not exceed window_ms={self.window_ms}",
        )
        require(
            0 <= self.low_hz < self.high_hz <= self.rate_hz / 2,
            f"Mel: the band {self.low_hz}-{self.high_hz} Hz must be rising and end by half of rate_hz={self.rate_hz}",
        )


@dataclass(frozen=True, kw_only=True)
class Conformer:
    """Convolution-augmented transformer over log-mel frames, four times shorter (arXiv 2005.08100)."""

    mel: Mel = field(default_factory=Mel)
    width: int = 256
    depth: int = 8
    heads: int = 4
    kernel: int = 15
    weights: str = ""  # as for Vit

    def __post_init__(self) -> None:
        positive(self, "width", "depth", "heads", "kernel")
        require(self.width % self.heads == 0, f"Conformer: width={self.width} is no multiple of heads={self.heads}")
        require(self.kernel % 2 == 1, f"Conformer: kernel={self.kernel} must be odd, to have a centre")

    @property
    def sound(self) -> Sound:
        """What it expects of a sound."""
        return Sound(rate_hz=self.mel.rate_hz)


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """A bidirectional transformer over text tokens."""

    width: int = 384
    depth: int = 6
    heads: int = 6
    vocabulary: int = 0  # ids that it knows, where it has a tokenizer of its own; 0: those of Model.tokenizer
    words: Words | None = None  # that tokenizer's contract; None: the model's tokenizer
    weights: str = ""  # as for Vit

    def __post_init__(self) -> None:
        positive(self, "width", "depth", "heads")
        require(self.width % self.heads == 0, f"TextTower: width={self.width} is no multiple of heads={self.heads}")


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The unified transformer: pre-norm RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

    width: int = 384
    depth: int = 8
    heads: int = 6
    kv_heads: int = 6
    mlp_ratio: float = 2.75
    weights: str = ""  # as for Vit; a causal language model, with its embeddings

    def __post_init__(self) -> None:
        positive(self, "width", "depth", "heads", "kv_heads", "mlp_ratio")
        require(self.width % self.heads == 0, f"Trunk: width={self.width} is no multiple of heads={self.heads}")
        require(
            self.width // self.heads % 2 == 0,
            f"Trunk: rotary positions need an even width per head, not {self.width // self.heads}",
        )
        require(
            self.heads % self.kv_heads == 0, f"Trunk: heads={self.heads} is no multiple of kv_heads={self.kv_heads}"
        )
