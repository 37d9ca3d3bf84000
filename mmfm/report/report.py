"""report.html: a run at a glance, in one file that needs no network. Standard library only.

What was trained on what, how long, how good, where it fails; from run.json, metrics.jsonl, results.json and
results.details.json. Whatever is missing is named, with the command that makes it. Only run.json is needed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmfm.config import Run
from mmfm.config.serialization import to_json
from mmfm.evals.records import SplitDetails
from mmfm.report import charts, examples, overview, scores
from mmfm.report.document import document, save_page, sectioned
from mmfm.report.markup import Html, join, tag
from mmfm.report.mistakes import MAP_NOTE, mistakes, worst
from mmfm.report.run_record import Log, Record, Skipped, read_record

NAME = "report.html"
COUNTED = {
    "samples": "samples",
    "image": "images",
    "audio": "sounds",
    "text": "texts",
    "without_class": "without a class",
}
SMALL_CHARTS = (
    ("loss", "Total loss", charts.loss_axis),
    ("lr", "Learning rate", charts.zero_axis),
    ("grad_norm", "Gradient norm", charts.loss_axis),
    ("samples_per_s", "Samples per second", charts.zero_axis),
    ("tokens_per_s", "Real tokens per second in the trunk", charts.zero_axis),
    ("mfu", "MFU", charts.zero_axis),
    ("data_wait", "Share of the time that waits for data", charts.zero_axis),
    ("padding/attention", "Share of attention that is padding", charts.zero_axis),
    ("memory_gb", "Peak memory in GB", charts.zero_axis),
)
SHOWN_TEMPLATES = 6
SMOOTHED = frozenset({"loss", "grad_norm", "samples_per_s", "tokens_per_s", "mfu", "data_wait"})


def write_report(run_folder: Path) -> Path:
    """Writes report.html into the folder and returns its path. UserError: no run there, or no room to write."""
    return save_page(render(read_record(run_folder)), run_folder / NAME)


def render(record: Record) -> Html:
    """The page."""
    links, main = sectioned(_sections(record))
    return document(f"{record.run.name}: report", _header(record, links), main, _footer(record))


def _sections(record: Record) -> dict[str, list[Html]]:
    """Name of the link -> its parts, in the order of the page."""
    splits = record.splits or {}
    found: dict[str, list[Html | None]] = {
        "Overview": [*_overview(record)],
        "Training": [*_training(record.run, record.log)] if record.log else [],
        "Scores": [*_scores(record)],
        "Where it fails": [*_mistakes(splits)],
        "Examples": [*_examples(splits)],
        "Data": [*([_data(splits)] if splits else []), *_skipped(record.skipped)],
        "Settings": [*_settings(record)],
    }
    return {name: [part for part in parts if part is not None] for name, parts in found.items()}


def _header(record: Record, links: Html) -> Html:
    return tag(
        "header",
        tag("p", "mmfm report", class_="kicker"),
        tag("h1", record.run.name),
        tag("p", overview.summary(record), class_="summary"),
        links,
    )


def _overview(record: Record) -> Iterator[Html]:
    if record.rows:
        yield scores.tiles(record.run, record.rows)
    yield from overview.notes(record)
    yield tag(
        "dl", *(tag("div", tag("dt", name), tag("dd", *said)) for name, said in overview.facts(record)), class_="facts"
    )


def _training(run: Run, log: Log) -> Iterator[Html]:
    """Losses by objective, the scores during training, and what the optimiser did."""
    names = [f"loss/{item.name}" for item in (*run.contrastive, *run.generative)]
    names += [name for name in log.curves if name.startswith("loss/") and name not in names]
    objectives = {name.removeprefix("loss/"): log.curves[name] for name in names if name in log.curves}
    if objectives:
        axis = charts.loss_axis(point for points in objectives.values() for point in points)
        note = f"{'logarithmic; ' if axis.log else ''}bold: running mean, faint: every logged step"
        yield charts.curves("Loss by objective", objectives, axis, note=note, height_px=300, smoothed=True)
    validation = {
        name.removeprefix("val_loss/"): log.curves[name] for name in log.curves if name.startswith("val_loss/")
    }
    if validation:
        axis = charts.loss_axis(point for points in validation.values() for point in points)
        yield charts.curves("Validation loss by objective", validation, axis, height_px=200)
    wide, small = scores.during_training(log)
    yield from wide
    scales = [(name, f"Scale of {name.removeprefix('scale/')}") for name in log.curves if name.startswith("scale/")]
    for name, title, axis in (*SMALL_CHARTS, *((name, title, charts.zero_axis) for name, title in scales)):
        if points := log.curves.get(name):
            small.append(charts.curves(title, {title: points}, axis(points), height_px=120, smoothed=name in SMOOTHED))
    if small:
        yield tag("div", *small, class_="small-charts")


def _scores(record: Record) -> Iterator[Html]:
    if record.rows:
        every = tag("summary", f"All {len(record.rows):,} figures as a table")
        yield scores.score_charts(record.run, record.rows)
        yield tag("details", every, scores.table(record.rows))


def _mistakes(splits: Mapping[str, SplitDetails]) -> Iterator[Html]:
    found = (mistakes(name, split, at == 0) for at, (name, split) in enumerate(splits.items()))
    told = [figures for figures in found if figures]
    if told:
        yield from (tag("p", sentence, class_="lead") for sentence in worst(*next(iter(splits.items()))))
        yield MAP_NOTE
        yield from told


def _examples(splits: Mapping[str, SplitDetails]) -> Iterator[Html]:
    if groups := examples.examples(splits):
        yield tag("p", examples.NOTE, class_="quiet")
        yield tag(
            "p", tag("label", tag("input", type="checkbox", id="failed-only"), " only what failed"), class_="choice"
        )
        yield from groups


def _data(splits: Mapping[str, SplitDetails]) -> Html:
    heading = ["split", "read from", *COUNTED.values(), "classes", "templates"]
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", tag("code", split.source)),
            *(
                tag("td", f"{split.counts[what]:,}" if what in split.counts else "–", class_="number")
                for what in COUNTED
            ),
            tag("td", f"{len(split.classes):,}", class_="number"),
            tag("td", *_templates(split.templates)),
        )
        for name, split in splits.items()
    ]
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in heading)))
    left_out = [tag("li", f"{name}: {line}") for name, split in splits.items() for line in split.left_out]
    told = tag("ul", *left_out, class_="left-out") if left_out else None
    return join((tag("div", tag("table", head, tag("tbody", *rows), class_="plain"), class_="scroll"), told))


def _skipped(skipped: Sequence[Skipped]) -> Iterator[Html]:
    """What training met and could not use: how many of each kind, and the first of them."""
    if not skipped:
        return
    counts = Counter((item.source, item.code) for item in skipped)
    head = tag("tr", *(tag("th", name, scope="col") for name in ("source", "fault", "samples", "such as")))
    rows = []
    for (source, code), count in counts.most_common():
        first = next(item for item in skipped if (item.source, item.code) == (source, code))
        cells = (tag("td", tag("code", code)), tag("td", f"{count:,}", class_="number"), tag("td", first.message))
        rows.append(tag("tr", tag("th", source, scope="row"), *cells))
    yield tag("h3", "Samples that training could not use")
    yield tag("p", "Each time that one of these was due, another of its source took its place.", class_="quiet")
    yield tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="plain"), class_="scroll")


def _templates(templates: Sequence[str]) -> Iterator[object]:
    for template in templates[:SHOWN_TEMPLATES]:
        yield from (tag("q", template), " ")
    if len(templates) > SHOWN_TEMPLATES:
        yield f"and {len(templates) - SHOWN_TEMPLATES:,} more"


def _settings(record: Record) -> Iterator[Html]:
    yield tag("p", "Run again, from the project's folder:")
    yield tag("pre", tag("code", "\n".join(overview.commands(record))))
    yield tag("details", tag("summary", "run.json in full"), tag("pre", tag("code", to_json(record.run))))


def _footer(record: Record) -> Html:
    return tag(
        "footer", tag("p", f"Made by mmfm report from the files of {record.folder}. It loads nothing from anywhere.")
    )
