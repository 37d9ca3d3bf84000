"""What may be chosen of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfm.config import RemoteCache, Run, Source, Text, require
from mmfm.data.decode import Decode, decode_of
from mmfm.evals.resampling import Bootstrap
from mmfm.runtime.machine import cores

MOST_MADE, MOST_WORKERS = 256, 4  # samples of each task for which something is made, unless said otherwise


@dataclass(frozen=True, kw_only=True)
class GenerationEvalConfig:
    """What is to be made: of each task for at most `most` samples. options: as `Interface.generate` takes them."""

    judges: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()  # the run's own that draw or say something, where none is named
    most: int = 0  # 0: MOST_MADE with judges or tasks, else nothing
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        zero = f"0: {MOST_MADE} where judges or tasks are named"
        require(self.most >= 0, f"--num-samples {self.most} must not be negative; {zero}")
        names = " and ".join(f"--{name.replace('_', '-')}" for name in self.options)
        told = f"{names} says how things are made; say what: --judges or --num-samples"
        require(bool(self.judges or self.tasks or self.most or not self.options), told)

    @property
    def count(self) -> int:
        return self.most or (MOST_MADE if self.judges or self.tasks else 0)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """`classes` is a file; it and `templates`, unless given, are looked for beside the shards.

    sources: the run's, as which samples are read. texts: fields to read instead of theirs. num_workers: processes that
    read and decode. quick: without likelihoods and what is filled in, which take long.
    """

    classes: Path | None = None
    templates: tuple[str, ...] = ()
    default_templates: tuple[str, ...] = ("{}",)
    batch_size: int = 64
    decode: Decode = field(default_factory=Decode)
    store: RemoteCache = field(default_factory=RemoteCache)
    max_tokens: int = 0  # where writing stops at the latest; 0: after twice the longest text that is to be written
    sources: tuple[Source, ...] = ()
    texts: tuple[Text, ...] = ()
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    limit: int | None = None
    generation: GenerationEvalConfig = field(default_factory=GenerationEvalConfig)
    num_workers: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        counts = {"batch_size": self.batch_size, "bootstrap": self.bootstrap.resamples}
        for name, value in {**counts, "limit": 1 if self.limit is None else self.limit}.items():
            require(value > 0, f"{name}={value} must be greater than 0")
        require(self.max_tokens >= 0, f"max_tokens={self.max_tokens} must not be negative; 0: what the texts need")
        require(self.num_workers >= 0, f"num_workers={self.num_workers} must not be negative; 0: this process reads")


def config_of(run: Run, **changes: Any) -> EvalConfig:
    """The run's own settings, but for those `changes` that say something (not None, not empty, not 0)."""
    chosen = {name: value for name, value in changes.items() if value or (name == "num_workers" and value is not None)}
    chosen["bootstrap"] = Bootstrap(resamples=chosen.get("bootstrap", run.eval.bootstrap))
    own = {
        "default_templates": run.eval.templates,
        "batch_size": run.eval.batch_size,
        "max_tokens": run.eval.max_tokens,
        "decode": decode_of(run.data),
        "store": run.data.remote_cache,
        "sources": run.data.train,
        "texts": run.eval.texts,
    }
    return EvalConfig(**{**own, **chosen})


def default_workers(ranks: int) -> int:
    """A process for each processor but the one that computes, and no more than the loop can use."""
    return max(0, min(MOST_WORKERS, cores() // ranks - 1))
