"""How a target is written: one frozen record of every choice, checked when it is made."""

from dataclasses import dataclass
from typing import Literal

from mmfm.config import Checked, require
from mmfm.config.task import Task

Finish = Literal["stop", "length"]  # why writing ended: by the end mark or a stop string, or cut at max_tokens


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Checked):
    """Greedy by default. What is drawn depends on the seed, the step and the id alone, never on the rest of a batch."""

    max_tokens: int = 64  # of a target without a fixed length, its end not counted
    temperature: float = 0.0  # 0: the likeliest
    top_k: int = 0  # draw among so many; 0: all
    top_p: float = 1.0  # among the likeliest that together have this chance (arXiv 1904.09751)
    min_p: float = 0.0  # among those with at least this part of the likeliest one's chance (arXiv 2407.01082)
    num_beams: int = 1
    length_penalty: float = 1.0  # a beam's score: its log-likelihood over its length, end counted, to this power
    guidance: float = 1.0  # u + s (c - u): how far to go beyond what the sources say (arXiv 2207.12598); 1: no further
    guide: tuple[tuple[str, float], ...] = ()  # u + sum of s_i (c_i - u), c_i with the source i alone: all of them
    # scores of tokens that were read as text or written: divided by it above 0, multiplied below (arXiv 1909.05858)
    repetition_penalty: float = 1.0
    min_tokens: int = 0  # before so many the end may not come
    stop: tuple[str, ...] = ()  # a text ends before the first of these
    best_of: int = 1  # texts, pictures or sounds of which the one nearest to the sources is kept
    num_steps: int = 8  # of filling in what is masked (arXiv 2202.04200)
    logprobs: bool = False  # those of what was written are kept
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "num_beams", "best_of", "num_steps"):
            require(getattr(self, name) > 0, f"GenerationConfig.{name}={getattr(self, name)} must be above 0")
        for name in ("temperature", "top_k", "guidance", "length_penalty", "min_tokens"):
            require(getattr(self, name) >= 0, f"GenerationConfig.{name}={getattr(self, name)} must not be negative")
        told = f"GenerationConfig.repetition_penalty={self.repetition_penalty} must be above 0; 1: none"
        require(self.repetition_penalty > 0, told)
        told = f"GenerationConfig.min_tokens={self.min_tokens} is over max_tokens={self.max_tokens}; lower it"
        require(self.min_tokens <= self.max_tokens, told)
        require(0 < self.top_p <= 1, f"GenerationConfig.top_p={self.top_p} must be above 0 and at most 1")
        require(0 <= self.min_p <= 1, f"GenerationConfig.min_p={self.min_p} must be between 0 and 1")
        require(all(self.stop), "GenerationConfig.stop holds an empty string, which is everywhere; leave it out")
        for name, rest in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0), ("best_of", 1)):
            value = getattr(self, name)
            told = (
                f"GenerationConfig.{name}={value} is for draws, and temperature 0 draws nothing; give temperature=1.0"
            )
            require(self.temperature > 0 or value == rest, told)
        names = [name for name, _ in self.guide]
        require(len(names) == len(set(names)), f"GenerationConfig.guide names a source twice: {', '.join(names)}")
        require(
            self.guidance == 1 or not names,
            f"GenerationConfig.guidance={self.guidance} and guide={self.guide} are two scales for one source; give one",
        )
        if self.num_beams > 1:
            told = f"GenerationConfig.num_beams={self.num_beams} looks for the likeliest: leave out"
            require(self.temperature == 0, f"{told} temperature={self.temperature}, or the beams")
            require(not self.stop, f"{told} stop={self.stop}, or the beams")
            penalty, least = self.repetition_penalty, self.min_tokens
            require(penalty == 1, f"{told} repetition_penalty={penalty}, or the beams")
            require(not least, f"{told} min_tokens={least}, or the beams")
            require(not self.logprobs, f"{told} logprobs, or the beams")

    @property
    def guided(self) -> bool:
        return self.guidance != 1 or bool(self.guide)

    def passes(self, sources: tuple[str, ...]) -> tuple[tuple[tuple[bool, ...], ...], tuple[float, ...]]:
        """For each pass that a step takes: which sources are seen, and the weight of its logits. Weights sum to 1.

        UserError: a scale for what is no source, a source without a scale, or nothing to guide by.
        """
        whole = (True,) * len(sources)
        if not self.guided:
            return (whole,), (1.0,)
        require(bool(sources), "guidance needs sources, and this task has none; leave guidance out")
        scales = dict(self.guide)
        if not scales:
            seen, weights = [tuple(not s for s in whole), whole], [1 - self.guidance, self.guidance]
        else:
            told = (
                f"GenerationConfig.guide gives {', '.join(scales)}; it must give one for each of {', '.join(sources)}"
            )
            require(set(scales) == set(sources), told)
            seen = [tuple(not s for s in whole), *(tuple(name == own for own in sources) for name in scales)]
            weights = [1 - sum(scales.values()), *scales.values()]
        used = [(one, weight) for one, weight in zip(seen, weights, strict=True) if weight]
        return tuple(one for one, _ in used), tuple(weight for _, weight in used)


def check_guidance(how: GenerationConfig, task: Task, drop: float) -> None:
    """Refuse guidance of a task that was trained without condition dropout: its u would mean nothing."""
    require(
        not how.guided or drop > 0,
        f"guidance of {task} needs a model trained with Generative(task='{task}', condition_dropout=0.1) or so; "
        "this one always saw its sources: leave guidance out",
    )
