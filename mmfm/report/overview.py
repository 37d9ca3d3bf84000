"""A run in words: the opening sentence, the facts, what is missing or odd, and the commands that make it again."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from statistics import median

from mmfm.config import Conformer, Embedded, Run, TextTower, Tower, Trunk, Vit
from mmfm.config.chat import MESSAGES
from mmfm.evals.metrics_table import metric_of
from mmfm.evals.records import Row
from mmfm.report import scores
from mmfm.report.charts import round_figure
from mmfm.report.markup import Html, tag
from mmfm.report.run_record import Record

PLURAL = {"image": "images", "audio": "sounds", "text": "texts", MESSAGES: "conversations"}
SINGULAR = {"image": "image", "audio": "sound", "text": "text", MESSAGES: "conversation"}


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def listed(words: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def summary(record: Record) -> str:
    """What was trained on what, for how long, and how good it is."""
    run, log = record.run, record.log
    met = [" with ".join(PLURAL[name] for name in source.modalities) for source in run.data.train]
    on = f" on {listed(list(dict.fromkeys(met)))}" if met else ""
    if log:
        start = f"One model, trained{on} for {log.step:,} steps in {duration(log.seconds)}."
    elif record.source:
        start = f"One model, a bundle of {record.source}."
    else:
        start = f"One model{on}, to be trained for {run.optim.steps:,} steps."
    return f"{start} {_achievements(record)}".strip()


def _achievements(record: Record) -> str:
    if not record.rows:
        return "It has not been evaluated yet."
    split, clauses = scores.splits_of(record.rows)[0], []
    whole = {row.task for row in record.rows}
    rows = [row for row in record.rows if ":" not in row.task or row.task.partition(":")[0] not in whole]  # no kinds
    for task, metric in scores.leading(rows):
        for row in scores.find(rows, task, metric, split):
            apart = ", though the two never met in training" if scores.never_met(record.run, task) else ""
            clauses.append(_clause(row) + apart)
    return f"On {split}: {listed(clauses)}." if clauses else ""


def _clause(row: Row) -> str:
    sources, _, target = row.task.replace("->", ">").rpartition(">")
    names = [PLURAL.get(name, name) for name in re.split("[,>]", sources)]
    ends = {"target": SINGULAR.get(target, target), "targets": PLURAL.get(target, target)}
    value = scores.show(row.metric, row.value)
    return metric_of(row.metric).sentence.format(value=value, sources=listed(names), **ends)


def facts(record: Record) -> Iterator[tuple[str, Sequence[object]]]:
    """Name -> what to say of it, for the header's list."""
    run = record.run
    yield "Data", [tag("p", tag("code", s.shards), f" {', '.join(s.modalities)}") for s in run.data.train] or ["none"]
    yield "Objectives", [tag("p", words) for words in _objectives(run)] or ["none"]
    yield "Model", [tag("p", words) for words in _model(run)]
    yield "Training", [tag("p", words) for words in _training(record)]
    if record.rows:
        yield "Scores", [tag("p", words) for words in dict.fromkeys(map(_scored, record.rows))]


def _objectives(run: Run) -> Iterator[str]:
    def weights(value: float) -> str:
        return "" if value == 1 else f" × {value:g}"

    if run.contrastive:
        yield "bring together " + listed([f"{c.name} ({c.loss}){weights(c.weight)}" for c in run.contrastive])
    if run.generative:
        yield "write " + listed([f"{w.task}{weights(w.weight)}" for w in run.generative])
    if run.chat:
        yield f"answer in conversations{weights(run.chat.weight)}"
    if run.distil:
        yield "learn from " + listed([f"{PurePath(d.teacher).name} ({d.name}){weights(d.weight)}" for d in run.distil])
    if run.reconstruction:
        yield "give back from codes " + listed([f"{PLURAL[r.modality]}{weights(r.weight)}" for r in run.reconstruction])
    if run.contrastive and run.generative:
        yield f"in {run.passes} pass{'es' if run.passes == 'two' else ''} of the trunk"


def _model(run: Run) -> Iterator[str]:
    model = run.model
    if model.image:
        seen = model.image.pixels
        yield f"images: {seen.width_px} × {seen.height_px} px, {_size(model.image, 'vision transformer')}"
    if model.audio:
        yield f"sounds: {model.audio.sound.rate_hz / 1000:g} kHz, {_size(model.audio, 'conformer')}"
    if isinstance(model.text, Embedded):
        yield "text: the trunk's own table"
    elif model.text:
        yield f"text: {_size(model.text, 'transformer')}"
    for name, codec in model.codecs.items():
        count = f"{codec.length} codes of" if codec.length else "codes of"
        yield f"writes {PLURAL[name]} in {count} {' + '.join(f'{size:,}' for size in codec.sizes)}"
    yield f"trunk: {_size(model.trunk, 'transformer')}; embeddings of {model.embed_dim}"


def _size(part: Vit | Conformer | TextTower | Trunk | Tower, kind: str) -> str:
    if isinstance(part, Tower):
        return f"{part.source}, tokens of {part.width}"
    return f"{kind}, {part.depth} layers of {part.width}"


def _training(record: Record) -> Iterator[str]:
    optim, log = record.run.optim, record.log
    if record.source:
        yield f"none here: a bundle of {record.source}"
        return
    yield f"{optim.steps:,} steps of {record.run.data.of_a_step}, {optim.precision}, seed {record.run.seed}"
    yield f"peak rate {optim.lr:g} after {optim.warmup_steps:,} steps, weight decay {optim.weight_decay:g}"
    if log:
        speeds = [
            f"{round_figure(median(value for _, value in log.curves[name]))} {words}"
            for name, words in (("steps_per_s", "steps/s"), ("samples_per_s", "samples/s"))
            if name in log.curves
        ]
        yield ", ".join((duration(log.seconds), *speeds))


def _scored(row: Row) -> str:
    """Of which weights a score is, and by which version."""
    step = "a step that they do not name" if row.step is None else f"step {row.step:,}"
    weights = f"weights {row.weights}" if row.weights else ""
    of = weights if row.step is None and weights else f"{step}, {weights}" if weights else step
    return f"of {of}" + (f", by mmfm {row.version}" if row.version else "")


def commands(record: Record) -> list[str]:
    """Train, evaluate, report; a bundle is there already."""
    folder = str(record.folder)
    specs = [split.source for split in (record.splits or {}).values()] or [record.run.data.val or "SHARDS"]
    return [
        *([] if record.source else [shlex.join(["mmfm", "train", f"{folder}/run.json"])]),
        shlex.join(["mmfm", "eval", folder, "--data", *specs, "--out", f"{folder}/results.json"]),
        shlex.join(["mmfm", "report", folder]),
    ]


def notes(record: Record) -> Iterator[Html]:
    """What is missing, with its command, and what went otherwise than planned."""
    *train, evaluate, _ = commands(record)
    yield from map(_note, record.doubts)
    log, steps = record.log, record.run.optim.steps
    if log is None and train:
        yield _note("There is no metrics.jsonl here, so no curves. Training writes it: ", tag("code", *train))
    if log is not None:
        if log.step < steps:
            yield _note(f"Training stopped at step {log.step:,} of {steps:,}.")
        if log.resumed:
            yield _note(f"Training was taken up again {_times(log.resumed)}; steps done twice count once.")
        if log.broken:
            lines = "One line" if log.broken == 1 else f"{log.broken:,} lines"
            yield _note(f"{lines} of metrics.jsonl cannot be read, as after a crash, and the curves go without.")
        if log.lost:
            named = ", ".join(f"{name} ({count:,})" for name, count in log.lost.items())
            yield _note(f"Values that were not finite are missing from the curves: {named}.")
    if record.rows is None or record.splits is None:
        names = [
            n for n, there in (("results.json", record.rows), ("results.details.json", record.splits)) if there is None
        ]
        lost = "scores" if record.rows is None else "confusions and examples"
        yield _note(
            f"There is no {' and no '.join(names)} here, so no {lost}. This makes them: ", tag("code", evaluate)
        )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _note(*said: object) -> Html:
    return tag("p", *said, class_="note")
