"""What people may choose of how a thing is made, with what they would expect where they say nothing.

Texts are the likeliest; pictures and sounds are drawn as the model believes. Of a chain the choices are for its last
link: those before are made as if nothing were chosen.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from mmfm.config import MODALITIES, Run, UserError, require
from mmfm.config.task import Task, parse_writing
from mmfm.generation import GenerationConfig, check_guidance
from mmfm.inference.processing import WORDS

SECONDS = 4.0  # of a sound, at the most, where nothing is said
TEXT_TOKENS = 64
OPTIONS = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "num_beams",
    "length_penalty",
    "guidance",
    "guide",
    "best_of",
    "num_steps",
    "stop",
    "repetition_penalty",
    "min_tokens",
    "logprobs",
)
NOT_WRITTEN = (
    "max_tokens",
    "num_beams",
    "length_penalty",
    "best_of",
    "stop",
    "min_tokens",
    "repetition_penalty",
    "logprobs",
)  # by a task that fills in


def decoding(task: Task, run: Run, turn_seconds: float, books: int, options: Mapping[str, Any]) -> GenerationConfig:
    """How this task's target is made. turn_seconds: of a sound, what a turn of `books` codes stands for.

    UserError: an option that there is not, one that means nothing for this task, or two that do not go together.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    check_names(chosen)
    _check(task, chosen)
    drawing = task.target != "text"
    default = {"temperature": float(drawing and chosen.get("num_beams", 1) == 1)}
    if task.target == "audio":
        default["max_tokens"] = max(1, round(SECONDS / turn_seconds)) * books
    elif not drawing:
        default["max_tokens"] = TEXT_TOKENS
    for name, kind in (("stop", tuple), ("temperature", float), ("guidance", float)):
        if name in chosen:
            chosen[name] = kind(chosen[name])
    how = GenerationConfig(**{**default, **chosen})
    check_guidance(how, task, drop_of(task, run))
    return how


def check_streamed(options: Mapping[str, Any]) -> None:
    """UserError for what pieces of a text cannot say."""
    told = "logprobs=True: pieces of a text hold none; take generate, or chat, or leave it out"
    require(not options.get("logprobs"), told)


def check_names(options: Iterable[str]) -> None:
    """UserError for a name that is no option, told before what it meant is missed."""
    names = (*MODALITIES, "mask", "seed", *OPTIONS)
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, names, n=1)
            raise UserError(f"there is no option {name!r}; {'try ' + near[0] if near else 'use ' + ', '.join(names)}")


def _check(task: Task, chosen: Mapping[str, Any]) -> None:
    what = WORDS[str(task.target)]
    if task.fill:
        for name in sorted(chosen.keys() & set(NOT_WRITTEN)):
            raise UserError(f"{name}={chosen[name]} means nothing where what is hidden is filled in; leave it out")
    else:
        require("num_steps" not in chosen, f"rounds are for tasks that fill in, such as {task.target}~; leave them out")
    text, image = task.target == "text", task.target == "image"
    require(text or "stop" not in chosen, f"stop={chosen.get('stop')} ends texts, and {task} makes a {what}; leave it")
    for name in ("max_tokens", "min_tokens"):
        told = f"{name}={chosen.get(name)}: a picture always has as many codes as it needs; leave it out"
        require(not image or name not in chosen, told)
    told = f"logprobs=True is of texts, and {task} makes a {what}, which holds none; leave it out"
    require(text or not chosen.get("logprobs"), told)
    if isinstance(chosen.get("stop"), str):
        raise UserError(f"stop={chosen['stop']!r} is one string; give several as a tuple, even if it is one")
    beams, best_of = chosen.get("num_beams", 1), chosen.get("best_of", 1)
    told = f"beams={beams} look for the likeliest and best_of={best_of} chooses among draws; give one of them"
    require(beams == 1 or best_of == 1, told)
    told = f"best_of compares what is made with its sources, and {task} has none; leave it out"
    require(best_of == 1 or bool(task.sources), told)
    draws = chosen.get("temperature", float(not text)) > 0
    require(
        best_of == 1 or draws,
        f"best_of={best_of} chooses among draws, and a text is written greedily; give temperature=1.0",
    )


def drop_of(task: Task, run: Run) -> float:
    """How often training hid the sources of this task from its target."""
    return next(
        (write.condition_dropout for write in run.generative if str(parse_writing(write.task)) == str(task)), 0.0
    )
