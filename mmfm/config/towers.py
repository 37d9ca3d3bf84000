"""The parts of a model that are built here: three towers and the trunk."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from mmfm.config.base import Checked, positive, require
from mmfm.config.encoders import AudioPreprocess, ImagePreprocess, TokenizerSpec

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]


@dataclass(frozen=True, kw_only=True)
class Vit(Checked):
    """A vision transformer over square patches (arXiv 2010.11929)."""

    height_px: int = 224
    width_px: int = 224
    # "crop": the middle, as much as has the right shape; "shortest": the same as other libraries do it, resized before
    # it is cut
    resize_mode: Literal["stretch", "crop", "shortest"] = "stretch"
    patch_px: int = 16  # the sides of a square that becomes one token
    channels: int = 3
    stem: Literal["patch", "conv"] = "patch"  # "conv": two or more strided convolutions (arXiv 2106.14881)
    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int = 0  # inside the MLPs; 0: four times the width
    activation: Activation = "gelu"
    eps: float = 1e-6  # of the norms
    prefix: int = 0  # learned tokens before the patches: a class token, registers
    patch_bias: bool = True  # a bias in the stem
    norm_pre: bool = False  # a norm before the first block (CLIP)
    norm_post: bool = True  # a norm after the last
    layer_scale: float = 0.0  # where the factors of a block's branches start (arXiv 2103.17239); 0: none
    crop_pct: float = 1.0  # only this fraction of the sides is kept, their middle
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    resizer: Literal["torch", "pillow"] = "torch"  # of a picture that is decoded exactly; torch's is faster
    odd: Literal["even", "down"] = "even"  # with "shortest": to where the middle between two pixels is rounded
    mean: tuple[float, ...] = (0.5,)  # of RGB in 0..1, one or one per channel; the tower sees (RGB - mean) / std
    std: tuple[float, ...] = (0.5,)
    weights: str = ""  # a folder of `mmfm import`, or of a run, to start from; empty: fresh ones

    def __post_init__(self) -> None:
        positive(self, "height_px", "width_px", "patch_px", "channels", "width", "depth", "heads", "eps")
        require(
            min(self.hidden, self.prefix, self.layer_scale) >= 0, "Vit: hidden, prefix and layer_scale are at least 0"
        )
        for side in (self.height_px, self.width_px):
            require(side % self.patch_px == 0, f"Vit: a side of {side} px is no multiple of patch_px={self.patch_px}")
        require(self.width % self.heads == 0, f"Vit: width={self.width} is no multiple of heads={self.heads}")
        power = self.patch_px & (self.patch_px - 1) == 0 and self.patch_px > 1
        require(self.stem == "patch" or power, f"Vit: a conv stem needs patch_px={self.patch_px} to be a power of 2")
        assert self.pixels  # it checks the fields that it is given

    @cached_property
    def pixels(self) -> ImagePreprocess:
        """What it expects of a picture."""
        return ImagePreprocess(
            height_px=self.height_px,
            width_px=self.width_px,
            channels=self.channels,
            resize_mode=self.resize_mode,
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            resizer=self.resizer,
            odd=self.odd,
            mean=self.mean,
            std=self.std,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height_px // self.patch_px, self.width_px // self.patch_px

    @property
    def tokens(self) -> int:
        """Patches, without the prefix."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class Mel(Checked):
    """How a waveform becomes a log-mel spectrogram. `high_hz` of 3800 is a telephone band, for 8 kHz recordings."""

    rate_hz: int = 16_000
    window_ms: float = 25.0
    hop_ms: float = 10.0
    bins: int = 80
    low_hz: float = 20.0
    high_hz: float = 7_600.0
    recipe: Literal["centred", "kaldi"] = "centred"  # "kaldi": its filter bank, each bin normalised over the clip

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
class Conformer(Checked):
    """Convolution-augmented transformer over log-mel frames, which its stem makes fewer (arXiv 2005.08100).

    stem: "conv" makes one token of four frames.
    """

    mel: Mel = field(default_factory=Mel)
    stem: Literal["conv", "stack", "none"] = "conv"  # "stack": two frames to a token; "none": frames are tokens
    width: int = 256
    depth: int = 8
    heads: int = 4
    hidden: int = 0  # inside the MLPs; 0: four times the width
    activation: Activation = "gelu"
    eps: float = 1e-5  # of the norms
    kernel: int = 15
    causal: bool = False  # the convolution looks back only
    conv_norm: Literal["layer", "fixed"] = "layer"  # "fixed": a batch norm whose statistics stay as they were trained
    conv_bias: bool = True
    mask_conv: bool = True  # False: the convolution sees the padding, as in torchaudio
    position: Literal["rotary", "relative", "none"] = "rotary"
    left: int = 0  # of relative positions: the distances that are told apart, before and after a frame
    right: int = 0
    weights: str = ""  # as for Vit

    def __post_init__(self) -> None:
        positive(self, "width", "depth", "heads", "kernel", "eps")
        require(min(self.hidden, self.left, self.right) >= 0, "Conformer: hidden, left and right are at least 0")
        require(self.width % self.heads == 0, f"Conformer: width={self.width} is no multiple of heads={self.heads}")
        require(self.kernel % 2 == 1, f"Conformer: kernel={self.kernel} must be odd, to have a centre")
        require(
            self.stem != "none" or self.mel.bins == self.width,
            f"Conformer: without a stem, mel.bins={self.mel.bins} must be its width={self.width}",
        )

    @cached_property
    def sound(self) -> AudioPreprocess:
        """What it expects of a sound."""
        return AudioPreprocess(rate_hz=self.mel.rate_hz)


@dataclass(frozen=True, kw_only=True)
class TextTower(Checked):
    """A transformer over text tokens; bidirectional unless it is causal."""

    width: int = 384
    depth: int = 6
    heads: int = 6
    hidden: int = 0  # inside the MLPs; 0: four times the width
    activation: Activation = "gelu"
    eps: float = 1e-6  # of the norms
    context: int = 0  # learned positions for so many tokens; 0: rotary ones, for any length
    causal: bool = False  # a token sees those before it only
    vocabulary: int = 0  # ids that it knows, where it has a tokenizer of its own; 0: those of Model.tokenizer
    words: TokenizerSpec | None = None  # that tokenizer's contract; None: the model's tokenizer
    weights: str = ""  # as for Vit

    def __post_init__(self) -> None:
        positive(self, "width", "depth", "heads", "eps")
        require(min(self.hidden, self.context) >= 0, "TextTower: hidden and context are at least 0")
        require(self.width % self.heads == 0, f"TextTower: width={self.width} is no multiple of heads={self.heads}")


@dataclass(frozen=True, kw_only=True)
class Trunk(Checked):
    """The unified transformer: pre-norm RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

    width: int = 384
    depth: int = 8  # 0: a dual encoder, whose towers give one token each; or a run that trains codecs alone
    heads: int = 6
    kv_heads: int = 6
    head_dim: int = 0  # width of a head; 0: width / heads
    mlp_ratio: float = 2.75
    hidden: int = 0  # inside the MLPs; 0: mlp_ratio times the width
    activation: Activation = "silu"  # of the MLPs' gates
    eps: float = 1e-6  # of the norms
    rope_theta: float = 10_000.0  # of the rotary positions
    rope_scaling: tuple[float, ...] = ()  # Llama 3.1: factor, low, high, context (`layers.rotary`); empty: none
    qkv_bias: bool = False  # Qwen2
    out_bias: bool = False
    qk_norm: bool = False  # Qwen3
    max_position_embeddings: int = 0  # the longest sentence that it may read, where its source saw no further; 0: any
    tie_embeddings: bool = True  # the table of embeddings is the output's too
    weights: str = ""  # as for Vit; a causal language model, with its embeddings

    def __post_init__(self) -> None:
        positive(self, "width", "heads", "kv_heads", "mlp_ratio", "eps", "rope_theta")
        require(self.depth >= 0, f"Trunk.depth={self.depth} must not be negative; 0: a dual encoder, or codecs alone")
        require(
            min(self.head_dim, self.hidden, self.max_position_embeddings) >= 0,
            "Trunk: head_dim, hidden, window are at least 0",
        )
        require(
            self.head_dim > 0 or self.width % self.heads == 0,
            f"Trunk: width={self.width} is no multiple of heads={self.heads}; say head_dim",
        )
        require(len(self.rope_scaling) in (0, 4), "Trunk.rope_scaling is factor, low, high, context, or empty")
        head_dim = self.head_dim or self.width // self.heads
        require(head_dim % 2 == 0, f"Trunk: rotary positions need an even width per head, not {head_dim}")
        require(
            self.heads % self.kv_heads == 0, f"Trunk: heads={self.heads} is no multiple of kv_heads={self.kv_heads}"
        )
