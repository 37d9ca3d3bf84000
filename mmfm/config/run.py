"""What is learned, how fast, and where it is kept: objectives, optimiser, evaluation, and the run of it all."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from mmfm.config.base import Checked, positive, require
from mmfm.config.chat import Chat
from mmfm.config.data import Data, Text
from mmfm.config.distil import Distil
from mmfm.config.extend import Callback, Logger, Objective
from mmfm.config.modalities import require_known
from mmfm.config.model import Model
from mmfm.config.parallel import Parallel


@dataclass(frozen=True, kw_only=True)
class Contrastive(Checked):
    """Bring together the embeddings of two modalities of one sample."""

    pair: tuple[str, str]
    loss: Literal["softmax", "sigmoid"] = "softmax"
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in self.pair:
            require_known(name, "Contrastive.pair")
        require(self.pair[0] != self.pair[1], f"Contrastive.pair={self.pair} must name two different modalities")
        require(self.weight >= 0, f"Contrastive.weight={self.weight} must not be negative")

    @property
    def name(self) -> str:
        return f"{self.pair[0]}-{self.pair[1]}"


@dataclass(frozen=True, kw_only=True)
class Generative(Checked):
    """Predict the target of a task such as "image>text", ">audio" or "image,text>text" token by token, or what is
    masked of it, as in "image~" and "text>image~"."""

    task: str
    weight: float = 1.0
    # of the samples that can take part, so many do; which, their position in the stream decides
    sample_fraction: float = 1.0
    # how often the target does not see its sources, as guidance needs (arXiv 2207.12598)
    condition_dropout: float = 0.0
    # how often a token that was written is not seen by those after it, so that sources must be read
    target_dropout: float = 0.0
    mask_ratio: tuple[float, float] = (0.1, 1.0)  # with "~": of a target's tokens a part between these is masked
    mask_span: int = 1  # with "~": in runs of so many tokens (arXiv 1907.10529); 1: each on its own

    def __post_init__(self) -> None:
        positive(self, "mask_span")
        require(self.weight >= 0, f"Generative.weight={self.weight} must not be negative")
        require(
            0 < self.sample_fraction <= 1,
            f"Generative.sample_fraction={self.sample_fraction} must be above 0 and at most 1",
        )
        require(
            0 <= self.condition_dropout < 1,
            f"Generative.condition_dropout={self.condition_dropout} must be at least 0 and below 1",
        )
        require(
            0 <= self.target_dropout < 1,
            f"Generative.target_dropout={self.target_dropout} must be at least 0 and below 1",
        )
        low, high = self.mask_ratio
        require(
            0 <= low <= high <= 1 and high > 0, f"Generative.mask_ratio={self.mask_ratio} must be two rising fractions"
        )

    @property
    def name(self) -> str:
        """The task, in one way of two: ">image~" is "image~"."""
        return self.task.removeprefix(">") if self.task.endswith("~") else self.task


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Checked):
    """Train the codec of a modality: what it decodes should be what it encoded."""

    modality: Literal["image", "audio"]
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight >= 0, f"Reconstruction.weight={self.weight} must not be negative")

    @property
    def name(self) -> str:
        return f"{self.modality} codec"


@dataclass(frozen=True, kw_only=True)
class ParamGroup(Checked):
    """How fast some parameters learn. `pattern` is of their names, such as "towers.image.*"; * is any text. "trunk.*"
    takes the tables of a trunk with `weights` along, of which it locks the rows of text alone; else "embedding.*" does.
    """

    pattern: str
    lr_scale: float  # times Optim.lr; 0 locks them: no gradient, no dropout, no decay
    # times this for each layer towards the input of their tower or trunk, whose last layer learns at lr_scale
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.lr_scale >= 0, f"ParamGroup.lr_scale={self.lr_scale} of {self.pattern!r} must not be negative; 0 locks"
        )
        told = f"ParamGroup.layer_decay={self.layer_decay} of {self.pattern!r} must be above 0 and at most 1"
        require(0 < self.layer_decay <= 1, f"{told}; to lock, set lr_scale=0")


@dataclass(frozen=True, kw_only=True)
class Ema(Checked):
    """An exponential moving average of the weights, kept beside them and read by --ema."""

    decay: float = 0.999  # a step; after 1 / (1 - decay) steps two thirds of it are new
    start_step: int = 0  # it begins as the weights after this step
    every: int = 1  # steps from one update to the next, each by as many steps' worth

    def __post_init__(self) -> None:
        positive(self, "every")
        require(0 <= self.decay < 1, f"Ema.decay={self.decay} must be at least 0 and below 1")
        require(self.start_step >= 0, f"Ema.start_step={self.start_step} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Optim(Checked):
    steps: int = 1_000
    extends: tuple[int, ...] = ()  # where earlier schedules ended: steps=3000, extends=(1000,) lengthens 1000
    lr: float = 1e-3
    warmup_steps: int = 100
    schedule: Literal["cosine", "wsd", "constant", "inverse_sqrt"] = "cosine"  # after the warm-up
    decay_fraction: float = 0.2  # of "wsd": the last steps, in which the rate falls
    min_lr_ratio: float = 0.01  # of the peak, below which no schedule falls
    optimizer: Literal["adamw", "muon"] = "adamw"  # "muon": of the matrices of blocks; the rest is AdamW's all the same
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of activations; weights and losses stay in fp32
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of fp32 products on a GPU; "high": TF32
    param_groups: tuple[ParamGroup, ...] = ()  # of several that match a parameter the last one counts
    ema: Ema | None = None

    def __post_init__(self) -> None:
        positive(self, "steps", "lr", "max_grad_norm")
        require(
            0 <= self.warmup_steps < self.steps,
            f"Optim.warmup_steps={self.warmup_steps} must be below steps={self.steps}",
        )
        ends = (0, *self.extends, self.steps)
        told = f"Optim.extends={self.extends} must rise up to steps={self.steps}, and each schedule be longer"
        long = all(after - before > self.warmup_steps for before, after in pairwise(ends))
        require(not self.extends or long, f"{told} than warmup_steps={self.warmup_steps}")
        require(not self.extends or self.warmup_steps > 0, "Optim.extends warms up again; warmup_steps must be above 0")
        told = f"Optim.decay_fraction={self.decay_fraction} must be above 0 and at most 1"
        require(0 < self.decay_fraction <= 1, told)
        require(self.eps > 0, f"Optim.eps={self.eps} must be above 0")
        require(0 <= self.min_lr_ratio <= 1, f"Optim.min_lr_ratio={self.min_lr_ratio} must be between 0 and 1")
        told = f"Optim.ema.start_step={self.ema and self.ema.start_step} must be below steps={self.steps}"
        require(self.ema is None or self.ema.start_step < self.steps, told)
        require(self.weight_decay >= 0, f"Optim.weight_decay={self.weight_decay} must not be negative")
        told = f"Optim.betas={self.betas} must be at least 0 and below 1 each"
        require(all(0 <= beta < 1 for beta in self.betas), told)


@dataclass(frozen=True, kw_only=True)
class Eval(Checked):
    splits: tuple[str, ...] = ()  # what `mmfm eval` scores besides data.val: SHARDS, NAME=SHARDS or SHARDS+MORE
    texts: tuple[Text, ...] = ()  # where the text of a split lies; empty: where the sources of training have it
    every_steps: int = 0  # zero-shot scores during training, and those of `suites`; 0: never
    suites: tuple[str, ...] = ()  # files of suites that are scored during training too; each is executed
    samples: int = 256  # of the validation shards, and of each data set of a suite, for those scores
    batch_size: int = 64
    templates: tuple[str, ...] = ("{}",)
    max_tokens: int = 0  # where a text that is written stops at the latest; 0: after twice the longest of the split
    bootstrap: int = 1_000

    def __post_init__(self) -> None:
        positive(self, "samples", "batch_size", "bootstrap")
        require(self.max_tokens >= 0, f"Eval.max_tokens={self.max_tokens} must not be negative; 0: what the texts need")
        require(self.every_steps >= 0, f"Eval.every_steps={self.every_steps} must not be negative; 0: never")
        require(bool(self.templates), 'Eval.templates is empty; "{}" is the name of the class alone')
        for template in self.templates:
            require("{}" in template, f"Eval.templates: {template!r} has no {{}} for the name of the class")


@dataclass(frozen=True, kw_only=True)
class Run(Checked):
    name: str
    seed: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    contrastive: tuple[Contrastive, ...] = ()
    generative: tuple[Generative, ...] = ()
    reconstruction: tuple[Reconstruction, ...] = ()
    chat: Chat | None = None  # conversations, of the sources that provide "messages"
    distil: tuple[Distil, ...] = ()  # from teachers, which are no part of the model
    objectives: tuple[Objective, ...] = ()  # of one's own (mmfm/config/extend.py)
    callbacks: tuple[Callback, ...] = ()
    loggers: tuple[Logger, ...] = ()
    passes: Literal["one", "two"] = "one"  # "two": embed in a pass of its own (experiments/001-one-pass)
    optim: Optim = field(default_factory=Optim)
    parallel: Parallel = field(default_factory=Parallel)
    eval: Eval = field(default_factory=Eval)
    start: str = ""  # a run's folder or a whole model's bundle, of which all weights that have a place here are taken
    out: str = "runs"
    save_every_steps: int = 500
    save_every_minutes: float = 0.0  # and whenever so much time has passed; 0: by steps alone
    keep_checkpoints: int = 2  # the newest
    keep_every_steps: int = 0  # and for ever those at multiples of this; 0: none
    profile_steps: tuple[int, ...] = ()  # first and last of the steps of which a trace is written to profile/
    best: str = ""  # and the best by this: val_loss, or another of val_loss/* and score/* in metrics.jsonl
    threads: int = 1  # of torch, per rank
    devices: int = 1  # ranks of a machine, started here; under torchrun or srun those that were launched
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"  # "auto": GPUs where there are some

    def __post_init__(self) -> None:
        positive(self, "save_every_steps", "keep_checkpoints", "threads", "devices")
        require(0 <= self.seed < 2**63, f"Run.seed={self.seed} must be at least 0 and below 2**63")
        require(self.save_every_minutes >= 0, f"Run.save_every_minutes={self.save_every_minutes} must not be negative")
        require(
            self.keep_every_steps >= 0 and self.keep_every_steps % self.save_every_steps == 0,
            f"Run.keep_every_steps={self.keep_every_steps} is no multiple of save_every_steps={self.save_every_steps}",
        )
        window, ends = self.profile_steps, f"two steps from 1 to optim.steps={self.optim.steps}, the first and the last"
        inside = len(window) == 2 and 1 <= window[0] <= window[1] <= self.optim.steps
        require(not window or inside, f"Run.profile_steps={window} must be {ends}")
        plain = self.name not in ("", ".", "..") and not set("/\0") & set(self.name)
        require(plain, f"Run.name={self.name!r} must be a plain folder name")
        told = "Parallel.micro_batch reads a batch in parts, and objectives of one's own take it whole; set it to 0"
        require(not (self.parallel.micro_batch and self.objectives), told)
        told = (
            "Run.chat learns conversations, and model.chat says nothing of how they become tokens; give a ChatTemplate"
        )
        require(self.chat is None or self.model.chat is not None, told)
        for item in self.distil:
            told = f"Distil.logits of {item.teacher} are of next tokens; add Generative(task='>text'), or a chat"
            require(not item.logits or self.chat is not None or ">text" in [g.task for g in self.generative], told)
        dual = not self.model.trunk.depth and bool(self.model.towers)
        told = (
            "has no use for generative tasks, chat and augment.tower_token_dropout; leave them out, or give it a layer"
        )
        unable = self.generative or self.chat or self.data.augment.tower_token_dropout
        require(not (dual and unable), f"Run: a dual encoder (Trunk.depth=0) {told}")
        changes = self.data.augment.crop or self.data.augment.horizontal_flip
        told = "Model.tiles are cut of whole pictures; set data.augment.crop=0 and horizontal_flip=False"
        require(not (self.model.tiles and changes), told)
        names = [item.name for item in self.terms]
        require(len(names) == len(set(names)), f"Run: an objective is listed twice: {', '.join(names)}")

    @property
    def terms(self) -> "tuple[Contrastive | Generative | Reconstruction | Chat | Distil | Objective, ...]":
        """All that the loss adds up, each with a name and a weight."""
        chat = () if self.chat is None else (self.chat,)
        return (*self.contrastive, *self.generative, *self.reconstruction, *chat, *self.distil, *self.objectives)

    @property
    def ranks(self) -> int:
        """Those that share each batch, on all machines."""
        return self.devices * self.parallel.nodes

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name
