"""What a run is: frozen dataclasses, checked when built. Standard library only.

A reference run is a Python file in `configs/` whose `config()` returns a `Run`; a saved run is `run.json`, which
`strict` reads and writes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MODALITIES = ("image", "audio", "text")
LONGEST_MESSAGE = 900  # characters


class UserError(ValueError):
    """A mistake of input, not of code: one line with the value, the rule and the remedy. The command line exits 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Whatever a file put into a message: no line break, no control of the screen, and not a whole file of it."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return shown if len(shown) <= LONGEST_MESSAGE else f"{shown[: LONGEST_MESSAGE - 300]} ... {shown[-280:]}"


def require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _positive(owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        require(value > 0, f"{type(owner).__name__}.{name}={value} must be greater than 0")


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

    def __post_init__(self) -> None:
        _positive(self, "height_px", "width_px", "patch_px", "channels", "width", "depth", "heads")
        for side in (self.height_px, self.width_px):
            require(side % self.patch_px == 0, f"Vit: a side of {side} px is no multiple of patch_px={self.patch_px}")
        require(self.width % self.heads == 0, f"Vit: width={self.width} is no multiple of heads={self.heads}")
        power = self.patch_px & (self.patch_px - 1) == 0 and self.patch_px > 1
        require(self.stem == "patch" or power, f"Vit: a conv stem needs patch_px={self.patch_px} to be a power of 2")

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
        _positive(self, "rate_hz", "window_ms", "hop_ms", "bins")
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

    def __post_init__(self) -> None:
        _positive(self, "width", "depth", "heads", "kernel")
        require(self.width % self.heads == 0, f"Conformer: width={self.width} is no multiple of heads={self.heads}")
        require(self.kernel % 2 == 1, f"Conformer: kernel={self.kernel} must be odd, to have a centre")


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """A bidirectional transformer over text tokens."""

    width: int = 384
    depth: int = 6
    heads: int = 6

    def __post_init__(self) -> None:
        _positive(self, "width", "depth", "heads")
        require(self.width % self.heads == 0, f"TextTower: width={self.width} is no multiple of heads={self.heads}")


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The unified transformer: pre-norm RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

    width: int = 384
    depth: int = 8
    heads: int = 6
    kv_heads: int = 6
    mlp_ratio: float = 2.75

    def __post_init__(self) -> None:
        _positive(self, "width", "depth", "heads", "kv_heads", "mlp_ratio")
        require(self.width % self.heads == 0, f"Trunk: width={self.width} is no multiple of heads={self.heads}")
        require(
            self.width // self.heads % 2 == 0,
            f"Trunk: rotary positions need an even width per head, not {self.width // self.heads}",
        )
        require(
            self.heads % self.kv_heads == 0, f"Trunk: heads={self.heads} is no multiple of kv_heads={self.kv_heads}"
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """Towers, one shared token space, one trunk. A tower of None means that the modality cannot be a source."""

    image: Vit | None = field(default_factory=Vit)
    audio: Conformer | None = field(default_factory=Conformer)
    text: TextTower | None = field(default_factory=TextTower)
    trunk: Trunk = field(default_factory=Trunk)
    tokenizer: str = "bytes"  # "bytes" or the path of a tokenizer.json of Hugging Face `tokenizers`
    image_codes: int = 0  # reserved ranges of the shared vocabulary
    audio_codes: int = 0
    embed_dim: int = 384
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "embed_dim")
        require(0 <= self.dropout < 1, f"Model.dropout={self.dropout} must be at least 0 and below 1")
        require(min(self.image_codes, self.audio_codes) >= 0, "Model: image_codes and audio_codes must not be negative")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to training input, each a function of the sample's position in the stream. Zero switches off."""

    rotate_deg: float = 0.0
    scale: float = 0.0  # 0.1: from 1/1.1 to 1.1 times the size, each axis on its own
    shear: float = 0.0
    shift: float = 0.0  # as a fraction of the shorter side
    elastic: float = 0.0  # smooth random displacement, as a fraction of the shorter side
    contrast: float = 0.0
    crop: float = (
        0.0  # 0.1: a random part of 0.9 to 1 of the picture's area, 3:4 to 4:3 as wide as high (torchvision's)
    )
    mirror: bool = False  # left and right are exchanged, half of the time
    cutout: float = 0.0  # longest side of a blanked rectangle, as a fraction of the picture's width and height
    hide_source_tokens: float = 0.0  # probability that a token of a text that is read is masked
    hide_target_tokens: float = 0.0  # and of one that is to be continued, so that the sources must be read
    speed: float = 0.0  # 0.1: the spectrogram is stretched in time by 1/1.1 to 1.1
    formant: float = 0.0  # 0.1: its frequency axis is stretched by 1/1.1 to 1.1 (vocal tract length perturbation)
    mask_frames: int = 0  # longest masked run of 10 ms frames (SpecAugment)
    mask_bins: int = 0
    noise: float = 0.0  # standard deviation on the normalised spectrogram

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 0, f"Augment.{name}={value} must not be negative")
        for name in ("crop", "cutout", "hide_source_tokens", "hide_target_tokens"):
            require(getattr(self, name) <= 1, f"Augment.{name}={getattr(self, name)} is a fraction: at most 1")


@dataclass(frozen=True, kw_only=True)
class Text:
    """Where a source's text may lie, and how often this place is drawn among those that a sample has."""

    field: str  # "txt", or the path of a value in the .json: "caption", "captions.fr", "captions.*" for any in there
    weight: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "weight")
        require(bool(self.field), 'Text.field is empty; name "txt" or a field of the .json, such as "captions.fr"')


@dataclass(frozen=True, kw_only=True)
class Source:
    """Shards that provide the same modalities. Of every sum-of-shares samples (or batches), `share` come from here."""

    shards: str  # a folder, a tar, a pattern such as data/train/image-{000000..000007}.tar, or the same as a URL
    provides: tuple[str, ...]
    share: int = 1
    name: str = ""  # in logs and reports; empty: `shards`
    texts: tuple[Text, ...] = ()  # empty: the .txt, else "caption" or "text" of the .json

    def __post_init__(self) -> None:
        _positive(self, "share")
        for name in self.provides:
            require(name in MODALITIES, f"Source.provides names {name!r}; modalities are {', '.join(MODALITIES)}")

    @property
    def label(self) -> str:
        return self.name or self.shards


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where shards with a URL are kept on this machine while they are in use."""

    folder: str = "~/.cache/mmfm/shards"
    limit_gb: float = 50.0  # the least recently used shards are removed beyond it
    tries: int = 5  # at one request, before an error of the network stops the run
    timeout_s: float = 30.0  # without a byte

    def __post_init__(self) -> None:
        _positive(self, "limit_gb", "tries", "timeout_s")


@dataclass(frozen=True, kw_only=True)
class Data:
    train: tuple[Source, ...] = ()
    val: str = ""  # shards scored during training; empty: none
    batch: int = 128  # samples per step, over all ranks
    unit: Literal["sample", "batch"] = "sample"  # "batch": all samples of a step come from one source
    shuffle: int = 65_536  # samples shuffled together, out of as many shards as hold them
    balance: bool = False  # deal the samples of a step to ranks by length, so that none waits for the longest
    workers: int = 1  # loader processes per rank
    cache_mb: int = 0  # decoded samples that each worker may keep; worth it where all of a set fits
    max_seconds: float = 30.0  # a longer clip is an error, not a silent cut
    crop_seconds: float = 0.0  # of a longer clip only this much is read, a random part in training; 0: all of it
    exact_decode: bool = False  # JPEG in full, then reduced; else decoded at a half, quarter or eighth: faster
    most_bad: float = 0.01  # of a source's last 10,000 samples may be unreadable; above it the run stops
    store: Store = field(default_factory=Store)
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        _positive(self, "batch", "shuffle", "max_seconds")
        require(self.workers >= 0, f"Data.workers={self.workers} must not be negative")
        require(self.cache_mb >= 0, f"Data.cache_mb={self.cache_mb} must not be negative")
        require(self.crop_seconds >= 0, f"Data.crop_seconds={self.crop_seconds} must not be negative")
        require(0 <= self.most_bad <= 1, f"Data.most_bad={self.most_bad} is a fraction: between 0 and 1")
        labels = [source.label for source in self.train]
        twice = next((label for label in labels if labels.count(label) > 1), "")
        require(not twice, f"Data.train: two sources are called {twice!r}; give each a name of its own")
        total = sum(source.share for source in self.train)
        require(
            not self.train or self.unit == "batch" or self.batch % total == 0,
            f"Data.batch={self.batch} must be a multiple of the sources' shares together ({total})",
        )


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Bring together the embeddings of two modalities of one sample."""

    pair: tuple[str, str]
    loss: Literal["softmax", "sigmoid"] = "softmax"
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in self.pair:
            require(name in MODALITIES, f"Contrast.pair names {name!r}; modalities are {', '.join(MODALITIES)}")
        require(self.pair[0] != self.pair[1], f"Contrast.pair={self.pair} must name two modalities")
        require(self.weight >= 0, f"Contrast.weight={self.weight} must not be negative")

    @property
    def name(self) -> str:
        return f"{self.pair[0]}-{self.pair[1]}"


@dataclass(frozen=True, kw_only=True)
class Write:
    """Predict the target of a task such as "image>text", ">text" or "image,text>text", token by token."""

    task: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight >= 0, f"Write.weight={self.weight} must not be negative")

    @property
    def name(self) -> str:
        return self.task


@dataclass(frozen=True, kw_only=True)
class Optim:
    steps: int = 1_000
    lr: float = 1e-3
    warmup_steps: int = 100
    lr_floor: float = 0.01  # of the peak, at the end of the cosine
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        _positive(self, "steps", "lr", "clip_norm")
        require(
            0 <= self.warmup_steps < self.steps,
            f"Optim.warmup_steps={self.warmup_steps} must be below steps={self.steps}",
        )
        require(0 <= self.lr_floor <= 1, f"Optim.lr_floor={self.lr_floor} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Eval:
    every_steps: int = 0  # zero-shot scores during training; 0: never
    samples: int = 256  # of the validation shards, for those scores
    batch: int = 64
    templates: tuple[str, ...] = ("{}",)
    max_tokens: int = 32  # longest text that is generated
    bootstrap: int = 1_000

    def __post_init__(self) -> None:
        _positive(self, "samples", "batch", "max_tokens", "bootstrap")
        for template in self.templates:
            require("{}" in template, f"Eval.templates: {template!r} has no {{}} for the name of the class")


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    seed: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    contrast: tuple[Contrast, ...] = ()
    write: tuple[Write, ...] = ()
    passes: Literal["one", "two"] = "one"  # "two": embed in a pass of its own (experiments/001-one-pass)
    optim: Optim = field(default_factory=Optim)
    eval: Eval = field(default_factory=Eval)
    out: str = "runs"
    save_every_steps: int = 500
    save_every_minutes: float = 0.0  # and whenever so much time has passed; 0: by steps alone
    keep_checkpoints: int = 2  # the newest
    keep_every_steps: int = 0  # and for ever those at multiples of this; 0: none
    threads: int = 1  # of torch, per rank
    devices: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self) -> None:
        _positive(self, "save_every_steps", "keep_checkpoints", "threads", "devices")
        require(self.save_every_minutes >= 0, f"Run.save_every_minutes={self.save_every_minutes} must not be negative")
        require(
            self.keep_every_steps >= 0 and self.keep_every_steps % self.save_every_steps == 0,
            f"Run.keep_every_steps={self.keep_every_steps} is no multiple of save_every_steps={self.save_every_steps}",
        )
        plain = self.name not in ("", ".", "..") and not set("/\0") & set(self.name)
        require(plain, f"Run.name={self.name!r} must be a plain folder name")
        names = [item.name for item in (*self.contrast, *self.write)]
        require(len(names) == len(set(names)), f"Run: an objective is listed twice: {', '.join(names)}")

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name
