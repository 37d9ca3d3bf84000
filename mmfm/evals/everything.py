"""All that a run can be asked about shards such as it learns from, which is what `mmfm eval RUN` asks."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmfm.config import media_names, modality_names
from mmfm.config.task import Task, parse
from mmfm.data.sample import why_no_text
from mmfm.evals.answers import Answer, Context, Result
from mmfm.evals.classes import NONE, ClassSet, class_of_samples, find_classes, find_templates
from mmfm.evals.examples import show
from mmfm.evals.generation import Generated, generate_all
from mmfm.evals.masked_prediction import filling_scores
from mmfm.evals.metrics import Score
from mmfm.evals.retrieval import Retrieved, retrieve_all
from mmfm.evals.split import Evaluable, Split, reads
from mmfm.evals.suite import Everything, keys_of
from mmfm.evals.writing import writing_scores
from mmfm.evals.zero_shot import Classified, class_vectors, classes_of, classify


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A split with all that was computed of it, before intervals."""

    context: Context
    split: Split
    classes: ClassSet
    templates: tuple[str, ...]
    owned: np.ndarray  # the class of each sample
    classified: dict[str, Classified]
    retrieved: list[Retrieved]
    generated: Generated

    def result(self) -> Result:
        coded, told = _coded(self.context.model, self.split)
        scores = [
            *(score for found in self.classified.values() for score in found.scores),
            *(score for found in self.retrieved if len(found.asked) for score in found.scores()),
            *writing_scores(self.split),
            *coded,
            *self.generated.scores(self.split),
            *filling_scores(self.context.model, self.split),
        ]
        lines = [*told, *self.generated.left_out, *self._lines({score.task for score in scores})]
        return Result(scores=scores, details=self._details(), left_out=lines)

    def _details(self) -> dict[str, Any]:
        """`quick` has no gallery, whose pictures and sounds are read again."""
        without = int((self.owned[: len(self.split)] == NONE).sum())
        config, model, shown = self.context.config, self.context.model, {}
        if not config.quick:
            shown = show(self.split, model, self.retrieved, config.decode, self.generated)
        return {
            "counts": {"without_class": without},
            "classes": self.classes.names,
            "templates": self.templates,
            "confusion": {f"{name}->text": found.confusion for name, found in self.classified.items()},
            "judges": self.generated.about(),
            **shown,
        }

    def _lines(self, done: set[str]) -> list[str]:
        model, split, total = self.context.model, self.split, len(self.split)
        lines = not_scored(model, done, quick=self.context.config.quick)
        if not reads(model):
            return lines
        if "text" not in model.modalities:
            lines.append("no classification: the model has no tower for text")
        elif not self.classes.names:
            lines.append("no classification: there is no classnames.txt, no --classes and no text to take names from")
        elif without := int((self.owned[:total] == NONE).sum()):
            lines.append(f"{without} of {total} samples have none of the {len(self.classes.names)} classes")
        without_text = [row for row in range(total) if split.infos[row].text is None and row not in split.bad]
        if without_text:
            lines.append(
                f"{len(without_text)} of {total} samples have no text{why_no_text(split.sample(without_text[0]))}"
            )
        for found in self.retrieved:
            if found.left_out:
                many = f"{found.left_out} of {len(found.query)}"
                lines.append(f"{found.task}: {many} queries have no relevant answer to find")
        return lines


def answer_everything(task: Everything, context: Context) -> Answer:
    model, config, ranks = context.model, context.config, context.ranks
    split = context.see(*keys_of(task))
    spec = task.data.shards
    templates = find_templates(spec, config.templates, config.default_templates, config.store)
    classes = find_classes([text for text in split.texts if text is not None], spec, config.classes, config.store)
    owned = class_of_samples(split, classes)
    classified: dict[str, Classified] = {}
    own = {name: classes_of(split, classes, name) for name in media_names()}
    if "text" in model.modalities and (owned != NONE).any():
        heads = class_vectors(model, classes.names, templates, ranks)
        for name in own if ranks.rank == 0 else ():
            if (found := classify(split, name, owned, heads, own[name])) is not None:
                classified[name] = found
    asked = _Asked(
        context=context,
        split=split,
        classes=classes,
        templates=templates,
        owned=owned,
        classified=classified,
        retrieved=retrieve_all(split, model, ranks),
        generated=generate_all(
            model,
            split,
            _expected(split, classes, owned),
            {name: [classes.names[at] for at in places] for name, places in own.items()},
            config,
            watch=context.watch,
            ranks=ranks,
        ),
    )
    return Answer(splits=(split,), result=asked.result)


def _expected(split: Split, classes: ClassSet, owned: np.ndarray) -> list[str | None]:
    """What a picture or sound of each sample should say: its class, else its text."""
    named = zip(owned[: len(split)].tolist(), split.infos, strict=False)
    return [info.text if place == NONE else classes.names[place] for place, info in named]


def scored_coders(model: Evaluable) -> dict[str, Any]:
    """The codecs that are to be scored; their metrics are slow to import, so a model without codecs goes without."""
    if not model.config.codecs:
        return {}
    from mmfm.evals import codec

    return codec.scored_coders(model)


def _coded(model: Evaluable, split: Split) -> tuple[list[Score], list[str]]:
    coders = scored_coders(model)
    if not coders:
        return [], []
    from mmfm.evals.codec import codec_scores

    found = [codec_scores(name, coder, split.coded.get(name)) for name, coder in coders.items()]
    return [score for scores, _ in found for score in scores], [line for _, lines in found for line in lines]


def not_scored(model: Evaluable, done: set[str], *, quick: bool) -> list[str]:
    """The tasks of the run that have no score, and why."""
    return [f"{name} is not scored: {_why(parse(name), quick)}" for name in model.tasks if name not in done]


def _why(task: Task, quick: bool) -> str:
    if task.target != "text" and not task.fill:
        return "judges read what it makes, and none was named (--judges)"
    if quick and (task.fill or not task.sources):
        return "mmfm eval scores it, as that takes long"
    names = [name for name in modality_names() if task.mentions(name)]
    return f"no sample holds {' and '.join(_some(task.mentions(name), name) for name in names)}"


def _some(count: int, name: str) -> str:
    if count > 1:
        return f"{count} items of {name}"
    return {"text": "a text", "image": "an image", "audio": "a sound"}.get(name, f"an item of {name}")
