"""`mmfm eval RUN`: its options, and what it does when called. Torch is imported by the call."""

import sys
from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

import tyro

from mmfm.config import require
from mmfm.config.extend import given_words
from mmfm.runtime.launch import first_process


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a run on shards: zero-shot classes, retrieval, writing; each figure with its interval and chance level."""

    run: tyro.conf.Positional[str]
    """The run's folder, such as runs/quickstart."""
    suite: tyro.conf.Positional[str] = ""
    """A suite, such as configs/suites/esc50.py: what it says is asked, instead of --data."""
    root: str = ""
    """The folder of the suite's data; else what the environment or the suite says."""
    data: tuple[str, ...] = ()
    """SHARDS, NAME=SHARDS, or SHARDS+MORE to search among MORE too; else data.val and eval.splits of the run."""
    out: str = ""
    """The file of the scores; else RUN/results.json, and of a suite RUN/results.SUITE.json."""
    classes: str = ""
    """A file with a class on each line; else classnames.txt beside the shards, else the distinct captions."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the class, or files of them; else templates.txt beside the shards, else the run's."""
    batch_size: int = 0
    """Samples at a time; 0: as the run says."""
    limit: int = 0
    """Score that many samples of each split, spread evenly; 0: all."""
    max_tokens: int = 0
    """Where writing stops at the latest; 0: as the run says."""
    bootstrap: int = 0
    """Resamples behind each interval; 0: as the run says."""
    judges: tuple[str, ...] = ()
    """Who reads what the run draws and says: digits, speech, whisper; makes figures and examples of it."""
    tasks: tuple[str, ...] = ()
    """What is drawn and said, such as 'image>text>audio'; else all of the run's tasks that draw or say something."""
    num_samples: int = 0
    """For how many samples of a split; 0: 256 where judges or tasks are named, else none."""
    best_of: int = 1
    """Draw so many of each and keep the nearest to its sources, as `mmfm generate` does."""
    guidance: float = 1.0
    """As of `mmfm generate`."""
    step: int = 0
    """Which checkpoint; 0: the last."""
    ema: bool = False
    """The moving average of the weights, which optim.ema keeps; its scores are in files named .ema.json."""
    device: str = "auto"
    """Where to compute: cpu, or cuda; auto: as the run says, on a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """In which precision; auto: on a GPU as it was trained, else float32."""
    workers: int = -1
    """Processes of each rank that read and decode; -1: as many as processors but one, at most 4; 0: none besides."""
    ranks: int = 0
    """Processes that share the work, each with a GPU of its own where there are some; 0: one, or a launcher's."""

    def __call__(self) -> None:
        from mmfm.evals.config import GenerationEvalConfig
        from mmfm.evals.run import evaluate_run
        from mmfm.runtime.distributed import agree
        from mmfm.runtime.rendezvous import assembled

        self._require()
        others = ("run", "ranks", "workers", *MAKING)
        chosen = {name: value for name, value in vars(self).items() if value and name not in others}
        if self.device != "auto":
            from mmfm.runtime.devices import device_of

            device_of(self.device)
        if self.dtype != "auto" and first_process():
            from mmfm.runtime.devices import tell_slow_products

            tell_slow_products(self.dtype, self.device)
        options = {name: value for name in ("best_of", "guidance") if (value := getattr(self, name)) != 1}
        judges = tuple(name for word in self.judges for name in word.split(",") if name)
        chosen["generation"] = GenerationEvalConfig(
            judges=judges, tasks=self.tasks, most=self.num_samples, options=options
        )
        workers = None if self.workers < 0 else self.workers
        words = [*words_of(self), *given_words()]
        with assembled(self.ranks, [sys.executable, "-m", "mmfm", "eval", *words]) as ranks:
            agree(ranks, {"what is asked": words}, "give all ranks the same words")
            evaluate_run(self.run, **chosen, num_workers=workers, ranks=ranks)

    def _require(self) -> None:
        for name, zero in ZERO.items():
            value = getattr(self, name)
            told = f"--{name.replace('_', '-')} {value} must not be negative; 0: {zero}"
            require(value >= 0, told)
        names = ("data", "classes", "templates", *MAKING)
        own = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) not in ((), "", 0, 1)]
        require(not self.suite or not own, f"{' and '.join(own)} and a suite do not go together: it declares its own")
        require(bool(self.suite) or not self.root, f"--root {self.root} is for suites; name one, or leave it out")


MAKING = ("judges", "tasks", "num_samples", "best_of", "guidance")
ZERO = {"batch_size": "as the run says", "limit": "all", "bootstrap": "as the run says", "step": "the last checkpoint"}


def words_of(command: Any) -> list[str]:
    """The words that make this command again; what is as by default is left out."""
    kinds = get_type_hints(type(command), include_extras=True)
    words: list[str] = []
    for field in fields(command):
        value = getattr(command, field.name)
        if kinds[field.name] == tyro.conf.Positional[str]:
            words += [value] if value else []
        elif value != field.default:
            given = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, given)]
    return words
