"""What a run is: frozen dataclasses, checked when built, and strict JSON in and out. Standard library only.

A reference run is a Python file in `configs/` whose `config()` returns a `Run`; a saved run is `run.json`, which names
no class and no module, so that reading it can execute nothing.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MODALITIES = ("image", "audio", "text")


class UserError(ValueError):
    """A mistake of input, not of code: one line with the value, the rule and the remedy. The command line exits 2."""


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
        for name in ("cutout", "hide_source_tokens", "hide_target_tokens"):
            require(getattr(self, name) <= 1, f"Augment.{name}={getattr(self, name)} is a fraction: at most 1")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Shards that provide the same modalities. `share` of every batch comes from here."""

    shards: str  # a folder, a tar, or a pattern such as data/train/image-{000000..000007}.tar
    provides: tuple[str, ...]
    share: int = 1

    def __post_init__(self) -> None:
        _positive(self, "share")
        for name in self.provides:
            require(name in MODALITIES, f"Source.provides names {name!r}; modalities are {', '.join(MODALITIES)}")


@dataclass(frozen=True, kw_only=True)
class Data:
    train: tuple[Source, ...] = ()
    val: str = ""  # shards scored during training; empty: none
    batch: int = 128  # samples per step, over all ranks
    workers: int = 1  # loader processes per rank
    cache_mb: int = 0  # decoded samples that each worker may keep; worth it where all of a set fits
    max_seconds: float = 30.0  # a longer clip is an error, not a silent cut
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        _positive(self, "batch", "max_seconds")
        require(self.workers >= 0, f"Data.workers={self.workers} must not be negative")
        require(self.cache_mb >= 0, f"Data.cache_mb={self.cache_mb} must not be negative")
        total = sum(source.share for source in self.train)
        require(
            not self.train or self.batch % total == 0,
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
    keep_checkpoints: int = 2
    threads: int = 1  # of torch, per rank
    devices: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self) -> None:
        _positive(self, "save_every_steps", "keep_checkpoints", "threads", "devices")
        require(bool(self.name) and "/" not in self.name, f"Run.name={self.name!r} must be a plain folder name")
        names = [item.name for item in (*self.contrast, *self.write)]
        require(len(names) == len(set(names)), f"Run: an objective is listed twice: {', '.join(names)}")

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name


def to_json(run: Run) -> str:
    """Everything that was chosen, in full: defaults too, so that a later default cannot change an old run."""
    return json.dumps(dataclasses.asdict(run), indent=2, allow_nan=False) + "\n"


def from_json(text: str, where: str = "run.json") -> Run:
    """The run that `to_json` wrote. An unknown or missing key, or a value of the wrong type, is an error."""
    try:
        tree = json.loads(text, parse_constant=_no_constant)
    except ValueError as why:
        raise UserError(f"{where} is not strict JSON ({why}); restore it from the run's checkpoint folder") from None
    return _build(Run, tree, where)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, a JSON tree, as `kind`: a dataclass, tuple, union, Literal or plain type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (rest,) = [argument for argument in arguments if argument is not type(None)]
        return _build(rest, value, where)
    if origin is tuple:
        require(isinstance(value, list), f"{where}: {value!r} should be a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        require(len(kinds) == len(value), f"{where}: {value!r} should have {len(kinds)} entries")
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is Literal:
        require(value in arguments, f"{where}: {value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    require(type(value) is kind, f"{where}: {value!r} should be of type {getattr(kind, '__name__', kind)}")
    require(kind is not float or math.isfinite(value), f"{where}: {value!r} is no finite number")
    return value


_PLAIN = (int, float, str, bool, type(None))


def _offer(kind: Any, names: list[str]) -> list[str]:
    """Each name, with the value it would have by default, as for a file of an older version."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    told = {name: json.dumps(value) for name, value in defaults.items() if isinstance(value, _PLAIN)}
    return [f"{name} (by default {told[name]})" if name in told else name for name in names]


def _dataclass(kind: type, value: Any, where: str) -> Any:
    require(isinstance(value, dict), f"{where}: {value!r} should be an object with the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    unknown, missing = sorted(value.keys() - hints.keys()), sorted(hints.keys() - value.keys())
    require(not unknown, f"{where}: unknown key {', '.join(unknown)}; {kind.__name__} has {', '.join(hints)}")
    require(not missing, f"{where}: missing key of {kind.__name__}; add {', '.join(_offer(kind, missing))}")
    return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in hints})
