"""The report shows what the files of a run say, says what they lack, and can do no harm."""

import base64
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmfm.config import CHATML, Chat, Contrastive, Data, Generative, Model, Optim, Run, Source, UserError
from mmfm.config.serialization import to_json
from mmfm.evals.records import SplitDetails
from mmfm.report import charts, examples, heatmap, mistakes, run_record, scores
from mmfm.report.report import write_report

VOID = {"hr", "img", "input", "meta"}


@dataclass
class Node:
    """An element of the page: enough of a DOM to ask questions of."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list["Node | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str = "", kind: str = "") -> list["Node"]:
        """The elements inside with this name, and with this word among their classes."""
        nodes = [child for child in self.children if isinstance(child, Node)]
        fits = [
            n for n in nodes if name in ("", n.name) and (not kind or kind in (n.attributes.get("class") or "").split())
        ]
        return fits + [found for node in nodes for found in node.all(name, kind)]

    def one(self, name: str = "", kind: str = "", having: str = "") -> "Node":
        return next(node for node in self.all(name, kind) if having in node.text)

    def section(self, name: str) -> "Node | None":
        return next((node for node in self.all("section") if node.attributes["id"] == name), None)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Node("page")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.stack[-1].children.append(node)
        if tag not in VOID:
            self.stack.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop().name == tag, "elements are closed in order"

    def handle_data(self, data: str) -> None:
        self.stack[-1].children.append(data)


def page_of(folder: Path) -> Node:
    reader = Reader()
    reader.feed(write_report(folder).read_text(encoding="utf-8"))
    assert len(reader.stack) == 1, "every element is closed"
    return reader.stack[0]


def run(**changes: Any) -> Run:
    sources = (
        Source(shards="d/image.tar", modalities=("image", "text")),
        Source(shards="d/audio.tar", modalities=("audio", "text")),
    )
    pairs = (Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text")))
    settings = {"name": "toy", "data": Data(train=sources, val="d/val", batch_size=8), "contrastive": pairs}
    return Run(**{**settings, "generative": (Generative(task="image>text"),), "optim": Optim(steps=200), **changes})


def row(split: str, task: str, metric: str, value: float | None, **changes: Any) -> dict[str, Any]:
    limits = {"low": None, "high": None} if value is None else {"low": value - 0.05, "high": value + 0.05}
    return {
        "split": split,
        "task": task,
        "metric": metric,
        "value": value,
        **limits,
        "chance": 0.125,
        "n": 80,
        **changes,
    }


ROWS = [
    row("val", "image->text", "acc@1", 0.9),
    row("test", "image->text", "acc@1", 0.8125),
    row("test-unseen", "image->text", "acc@1", 0.5),
    row("test", "image->audio", "R@1", 0.25),
    row("test", "audio>text", "wer", 0.375, chance=1.0),
    row("test", ">text", "bits_per_byte", 2.5, low=2.25, high=2.75, chance=8.0),
]


def item(modality: str, caption: str = "seven", src: str = "") -> dict[str, str]:
    return {"modality": modality, "key": f"{modality}-1", "caption": caption, "src": src}


def split(**changes: Any) -> dict[str, Any]:
    known = {"source": "d/test", "counts": {"samples": 9, "image": 8, "audio": 1, "text": 9, "without_class": 2}}
    return {
        **known,
        "classes": ["one", "seven", "nine"],
        "templates": ["the {}"],
        "confusion": {},
        "retrievals": [],
        **changes,
    }


def make(
    folder: Path, *, lines: Sequence[str] | None = None, rows: Any = None, splits: Any = None, **changes: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(to_json(run(**changes)))
    if lines is not None:
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    if rows is not None:
        (folder / "results.json").write_text(json.dumps(rows))
    if splits is not None:
        (folder / "results.details.json").write_text(json.dumps({"about": {}, "splits": splits}))
    return folder


def line(step: int, **values: float | None) -> str:
    return json.dumps({"step": step, "seconds": float(step), **values})


def curve_of(page: Node, title: str) -> Node:
    return page.one("figure", "chart", having=title)


def points_of(path: Node) -> list[tuple[float, float]]:
    pairs = (path.attributes["d"] or "")[1:].split("L")
    return [(float(x), float(y)) for x, y in (pair.split() for pair in pairs)]


def png(pixels: np.ndarray, layout: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, layout)
    return f"data:image/{layout.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def test_tiles_show_the_results_with_interval_and_chance(tmp_path: Path) -> None:
    """The large figure is the value of results.json for `test`, wherever its row stands; the others stand below."""
    page = page_of(make(tmp_path, rows=ROWS, lines=[line(100)], splits={}))
    tile = page.one("ul", "tiles").one("li", having="acc@1")
    assert tile.one("strong").text == "81.2\N{NO-BREAK SPACE}%"
    assert "test: 95 % interval 76.2 – 86.2, chance 12.5\N{NO-BREAK SPACE}%" in tile.text
    lanes = tile.all("div", "split")
    assert [lane.all("span")[0].text for lane in lanes] == ["test", "test-unseen", "val"]
    assert lanes[1].one("span", "value").text == "50.0\N{NO-BREAK SPACE}%"
    assert "81.2\N{NO-BREAK SPACE}% of the images named right" in page.one("p", "summary").text
    assert "37.5\N{NO-BREAK SPACE}% of the words of the sounds' texts written wrong" in page.one("p", "summary").text


def test_a_run_of_conversations_is_summed_up_in_words(tmp_path: Path) -> None:
    """What it was trained on, and the score of all questions, not that of each kind, which would read the same."""
    rows = [row("test", f"messages>text{kind}", "exact_match", 0.25) for kind in ("", ":colour", ":count")]
    data = Data(train=(Source(shards="d/chat.tar", modalities=("messages",)),), val="d/val", batch_size=8)
    folder = make(
        tmp_path,
        rows=rows,
        lines=[line(100)],
        data=data,
        contrastive=(),
        generative=(),
        chat=Chat(),
        model=Model(chat=CHATML),
    )
    said = page_of(folder).one("p", "summary").text
    assert "trained on conversations for" in said and said.count("of the conversations") == 1


def test_value_interval_and_chance_are_drawn_in_their_places(tmp_path: Path) -> None:
    """On the axis from 0 to 100 %, the mark lies at the value, the bar from low to high, the tick at chance."""
    page = page_of(make(tmp_path, rows=ROWS))
    lane = page.one("ul", "tiles").one("li", having="acc@1").one("svg", "lane")
    assert lane.one("line", "chance").attributes["x1"] == "12.50%"
    assert lane.one("rect", "range").attributes["x"] == "76.25%"
    assert lane.one("rect", "range").attributes["width"] == "10.00%"
    assert lane.one("svg").attributes["x"] == "81.25%"
    bits = page.one("table", "dots", having="bits per byte")
    assert bits.one("line", "chance").attributes["x1"] == "100.00%"  # 8 bits, on an axis of its own
    assert bits.one("b").text == "2.50"


def test_the_headline_split_comes_first_everywhere(tmp_path: Path) -> None:
    """`test`, then other tests, then the rest, in tiles, charts, confusions and examples, whatever the files' order."""
    names = ["dev", "test-b", "test"]
    confused = {name: split(confusion={"image->text": [[0, 1, 2]]}, retrievals=[retrieval("")]) for name in names}
    page = page_of(make(tmp_path, rows=[row(name, "image->text", "acc@1", 0.5) for name in names], splits=confused))
    ordered = ["test", "test-b", "dev"]
    assert [lane.all("span")[0].text for lane in page.one("ul", "tiles").all("div", "split")] == ordered
    assert [line.one("th").text for line in page.one("table", "dots").all("tr") if line.all(kind="track")] == ordered
    opened = [(d.one("summary").text, "open" in d.attributes) for d in page.all("details") if "image" in d.text]
    assert ordered * 2 == [re.findall(r"test-b|test|dev", text)[0] for text, _ in opened[1:7]]
    assert [is_open for _, is_open in opened[1:7]] == [True, False, False] * 2


def test_a_pair_that_never_met_is_called_so(tmp_path: Path) -> None:
    """image->audio is emergent here; with an objective for the pair, or a source that provides both, it is not."""
    page = page_of(make(tmp_path, rows=ROWS))
    assert "never met" in page.one("ul", "tiles").one("li", having="image → audio").text
    assert not scores.never_met(run(contrastive=(Contrastive(pair=("audio", "image")),)), "image->audio")
    both = Data(train=(Source(shards="x", modalities=("image", "audio", "text")),), batch_size=8)
    assert not scores.never_met(run(data=both), "image->audio")
    assert not scores.never_met(run(), "image>text")


def test_text_from_data_cannot_act(tmp_path: Path) -> None:
    """Markup in a caption, class, split, task, metric, key or name is shown as text: one script, no handler."""
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    query = {**item("image", evil, png(np.zeros((2, 2), np.uint8))), "key": evil}
    retrieval = {"task": evil, "query": query, "matches": [{"item": item("text", evil), "score": 0.5, "hit": True}]}
    writing = {"task": evil, "source": query, "reference": evil, "written": f"{evil}!", "correct": False}
    more = {"retrievals": [retrieval], "writings": [writing], "left_out": [evil], "templates": [evil], "source": evil}
    evil_split = split(classes=[evil] * 3, confusion={evil: [[0, 1, 2]]}, **more)
    lines = [line(1, **{f"loss/{evil}": 1.0, f"score/{evil}/{evil}/acc@1": 0.5})]
    rows = [row(evil, evil, evil, 0.5)]
    page = page_of(make(tmp_path, rows=rows, splits={evil: evil_split}, lines=lines, name=evil.replace("/", "")))
    (script,) = page.all("script")
    assert script.text.startswith("// What the page adds")
    assert not [name for node in page.all() for name in node.attributes if name.startswith("on")]
    assert page.one("blockquote").text == evil
    assert [node for node in page.all("img") if node.attributes["src"] == "x"] == []


def test_samples_that_training_could_not_use_are_counted_once_and_named(tmp_path: Path) -> None:
    """From skipped.jsonl of all ranks: distinct samples by source and fault, the first of each in words; no markup."""
    bad = [
        {
            "source": "clips",
            "shard": "a.tar",
            "key": f"k{n}",
            "code": "audio_cut",
            "message": f"a.tar: k{n}: <b>cut</b>",
        }
        for n in range(3)
    ]
    other = {"source": "clips", "shard": "b.tar", "key": "x", "code": "text_empty", "message": "b.tar: x: empty"}
    folder = make(tmp_path, rows=ROWS)
    again = {**bad[0], "position": 77}
    (folder / "skipped.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [*bad, again]) + '{"source": "cl')
    (folder / "skipped-1.jsonl").write_text(json.dumps(other))
    section = page_of(folder).one("section", having="Samples that training could not use")
    rows = [[cell.text for cell in line.all("td")] for line in section.all("tr")[1:]]
    assert rows == [["audio_cut", "3", "a.tar: k0: <b>cut</b>"], ["text_empty", "1", "b.tar: x: empty"]]
    assert "Samples that training" not in page_of(make(tmp_path / "clean", rows=ROWS)).text


def test_the_page_asks_for_nothing_and_allows_only_its_own_script(tmp_path: Path) -> None:
    """All that is loaded is inline, and the policy names the hashes of exactly this style and this script."""
    outside = item("image", "remote", "https://example.org/a.png")
    shown = {
        "task": "image->text",
        "query": outside,
        "matches": [{"item": item("audio", src="javascript:0"), "score": 1.0, "hit": False}],
    }
    page = page_of(make(tmp_path, rows=ROWS, splits={"test": split(retrievals=[shown])}))
    policy = next(m.attributes["content"] or "" for m in page.all("meta") if "http-equiv" in m.attributes)
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:;")
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.one(name).text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    addresses = [n.attributes[a] or "" for n in page.all() for a in ("src", "href") if a in n.attributes]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in page.one("style").text and "@import" not in page.one("style").text
    assert not [node for node in page.all() if "style" in node.attributes]
    assert "no image kept" in page.text and "no audio kept" in page.text


@pytest.mark.parametrize(
    ("missing", "told", "section"),
    [
        ("metrics.jsonl", "mmfm train", "training"),
        ("results.json", "mmfm eval", "scores"),
        ("results.details.json", "mmfm eval", "where-it-fails"),
    ],
)
def test_what_is_missing_is_named_with_its_command(tmp_path: Path, missing: str, told: str, section: str) -> None:
    """Without one of the files there is a page still; it names the file and the command, and leaves the section out."""
    confused = {"test": split(confusion={"image->text": [[0, 1, 2]]})}
    make(tmp_path, rows=ROWS, lines=[line(200, **{"loss/image-text": 1.0})], splits=confused)
    whole = page_of(tmp_path)
    assert whole.section(section) and not whole.all("p", "note")
    (tmp_path / missing).unlink()
    page = page_of(tmp_path)
    (note,) = page.all("p", "note")
    assert missing in note.text and told in note.text and str(tmp_path) in note.text
    assert page.section(section) is None
    assert [a for a in page.one("nav").all("a") if a.attributes["href"] == f"#{section}"] == []


def test_run_alone_makes_a_page(tmp_path: Path) -> None:
    page = page_of(make(tmp_path))
    assert "has not been evaluated yet" in page.one("p", "summary").text
    assert [section.attributes["id"] for section in page.all("section")] == ["overview", "settings"]
    assert '"batch_size": 8' in page.one("section", having="run.json in full").text


def test_no_run_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; give the folder of a run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no run\.json, so it is no run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", "[{]"),
        ("results.json", '[{"split": "test"}]'),
        ("results.json", "[1]"),
        ("results.json", "7"),
        ("results.details.json", "[]"),
        ("results.details.json", '{"splits": {"test": {"confusion": {"image->text": [[1, 2]]}}}}'),
        ("results.details.json", '{"splits": {"test": {"retrievals": [{"task": "a->b"}]}}}'),
    ],
)
def test_a_damaged_file_is_a_mistake_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    """The message names the file and the remedy; the page that was there before stays."""
    folder = make(tmp_path)
    before = write_report(folder).read_bytes()
    (folder / name).write_text(text)
    with pytest.raises(UserError) as caught:
        write_report(folder)
    assert str(folder / name) in str(caught.value) and "make it again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (folder / "report.html").read_bytes() == before


def test_a_page_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    (make(tmp_path) / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html cannot be written \(.*\); free some space"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_absent_values_are_dashes_and_draw_nothing(tmp_path: Path) -> None:
    """null is no zero: no mark, no interval, no chance, a dash in the table, no tile."""
    rows = [row("test", "image->text", "acc@1", None), row("test", "audio->text", "acc@1", None, chance=None)]
    page = page_of(make(tmp_path, rows=rows))
    dots = page.all("table", "dots")
    assert len(dots) == 2 and [table.one("b").text for table in dots] == ["–", "–"]
    assert not [mark for table in dots for mark in table.one("td", "track").all(kind="mark")]
    assert len(dots[0].all(kind="chance")) == 1 and len(dots[1].all(kind="chance")) == 0
    assert [cell.text for cell in page.one("table", "sortable").all("tr")[2].all("td")][3:7] == ["–"] * 4
    assert page.one("ul", "tiles").all("li") == []


def test_the_table_holds_every_row(tmp_path: Path) -> None:
    """Each row of results.json stands in the plain table, to four decimals, with the exact value to sort by."""
    table = page_of(make(tmp_path, rows=ROWS)).one("table", "sortable")
    written = [[cell.text for cell in line.all("td")] for line in table.one("tbody").all("tr")]
    names = ("value", "low", "high", "chance")
    assert written == [
        [r["split"], r["task"], r["metric"], *(f"{r[name]:.4f}" for name in names), str(r["n"])] for r in ROWS
    ]
    assert float(table.all("tr")[2].all("td")[3].attributes["data-value"] or "") == 0.8125


def test_a_cut_last_line_is_counted_and_the_rest_is_drawn(tmp_path: Path) -> None:
    """After a crash in mid-line the curve has the points before it; the page says so, and where training stopped."""
    lines = [*(line(step, **{"loss/image-text": 2.0}) for step in (50, 100)), '{"step": 150, "loss/im']
    page = page_of(make(tmp_path, lines=lines))
    notes = " ".join(note.text for note in page.all("p", "note"))
    assert "One line of metrics.jsonl cannot be read" in notes
    assert "Training stopped at step 100 of 200." in notes
    path = curve_of(page, "Loss by objective").one("path", "curve")
    assert [x for x, _ in points_of(path)] == [50.0, 100.0]


def test_a_resumed_run_counts_each_step_once_and_all_of_its_time() -> None:
    """Training went to 30, was killed, and went on from 10: the lost steps leave the curve but not the clock."""
    lines = [line(10, loss=1.0), line(20, loss=2.0), line(30, loss=3.0)]
    lines += [
        json.dumps({"step": 20, "seconds": 5.0, "loss": 20.0}),
        json.dumps({"step": 40, "seconds": 9.0, "loss": 40.0}),
    ]
    log = run_record.read_log("\n".join(lines))
    assert log.curves["loss"] == ((10, 1.0), (20, 20.0), (40, 40.0))
    assert (log.resumed, log.seconds, log.step) == (1, 39.0, 40)


def test_scores_that_come_late_do_not_look_like_a_restart() -> None:
    """A line of scores has no clock; one for a step that is past takes nothing away."""
    lines = [line(10, loss=1.0), line(20, loss=2.0), json.dumps({"step": 10, "score/val/image->text/acc@1": 0.5})]
    log = run_record.read_log("\n".join(lines))
    assert log.curves["loss"] == ((10, 1.0), (20, 2.0)) and log.resumed == 0


def test_values_that_are_not_finite_are_told(tmp_path: Path) -> None:
    """NaN, infinity and null are counted by name, and leave a curve of the finite values."""
    lines = [line(50, loss=1.0), line(100, loss=math.nan), line(150, loss=None), line(200, loss=2.0, lr=math.inf)]
    page = page_of(make(tmp_path, lines=lines))
    assert "not finite are missing from the curves: loss (2), lr (1)." in page.one("p", "note").text
    assert len(points_of(curve_of(page, "Total loss").one("path", "curve"))) == 2


def test_curve_points_lie_where_they_were_planted(tmp_path: Path) -> None:
    """Raw values on a linear axis; on a logarithmic one, the geometric mean lies half-way between two values."""
    linear = [line(step, **{"loss/a": value}) for step, value in ((0, 4.0), (100, 1.0), (200, 2.0))]
    page = page_of(make(tmp_path / "linear", lines=linear))
    raw = curve_of(page, "Loss by objective").one("path", "raw")
    assert points_of(raw) == [(0.0, 0.0), (50.0, 75.0), (100.0, 50.0)]
    rising = [line(step, **{"loss/a": value}) for step, value in ((0, 100.0), (100, 1.0), (200, 0.01))]
    figure = curve_of(page_of(make(tmp_path / "log", lines=rising)), "Loss by objective")
    (_, top), (_, middle), (_, bottom) = points_of(figure.one("path", "raw"))
    assert "logarithmic" in figure.text
    assert middle == pytest.approx((top + bottom) / 2, abs=0.02) and 0 < top < bottom < 100


def test_curves_are_named_by_objective_in_the_order_of_the_run(tmp_path: Path) -> None:
    """Names stand at the ends and in the legend; what the run does not know comes last; scores have their own chart."""
    values = {"loss/x": 1.0, "loss/image>text": 1.0, "loss/audio-text": 1.0, "loss/image-text": 1.0}
    scored = json.dumps({"step": 100, "score/val/image->text/acc@1": 0.5, "score/val/image->text/acc@5": 0.9})
    page = page_of(make(tmp_path, lines=[line(100, **values), scored]))
    legend = [entry.text for entry in curve_of(page, "Loss by objective").one("ul", "legend").all("li")]
    assert legend == ["image-text", "audio-text", "image>text", "x"]
    chart = curve_of(page, "Scores on val")
    assert "image → text acc@1 from 50" in (chart.one("svg", "curves").attributes["aria-label"] or "")
    assert "acc@5" not in json.dumps(chart.attributes)
    dot = chart.one("circle", "dot")  # a single point is no line
    assert (dot.attributes["cx"], dot.attributes["cy"]) == ("100.00%", "50.00%")


def test_what_steps_cost_is_shown(tmp_path: Path) -> None:
    """Each figure as a curve where the run has it, and no empty one where it has none, such as the MFU of a CPU."""
    told = {"tokens_per_s": 100.0, "data_wait": 0.25, "padding/attention": 0.5, "memory_gb": 2.0}
    page = page_of(make(tmp_path, lines=[line(step, **told) for step in (10, 20)]))
    shown = page.one("div", "small-charts").text
    for title in ("Real tokens per second", "waits for data", "is padding", "Peak memory in GB"):
        assert title in shown
    assert "MFU" not in shown


def test_smoothing_keeps_a_straight_line_and_does_not_lag() -> None:
    """Away from the ends a centred mean of a line is the line; a running mean of the past would trail behind."""
    straight = [(step, 3.0 * step) for step in range(200)]
    smoothed = charts.smooth(straight)
    np.testing.assert_allclose(smoothed[20:180], straight[20:180])
    noisy = [(step, float(step % 2)) for step in range(200)]
    assert all(abs(value - 0.5) < 0.1 for _, value in charts.smooth(noisy)[10:190])


def test_thinning_keeps_the_spike_and_both_ends() -> None:
    points = [(step, 1.0) for step in range(50_000)]
    points[31_234] = (31_234, 99.0)
    kept = charts.thin(points, 1_000)
    assert len(kept) <= 1_002 and (31_234, 99.0) in kept
    assert kept[0] == points[0] and kept[-1] == points[-1] and kept == sorted(kept)


def test_labels_keep_apart_in_order() -> None:
    """Seven curves end together at the foot of the chart: labels a line apart, within the chart, in the same order."""
    wanted = [258.0, 259.0, 257.0, 260.0, 10.0, 256.0, 255.0]
    places = charts.spread(wanted, 16.0, 260.0)
    assert places[4] == 10.0 and max(places) <= 260.0
    order = sorted(range(7), key=lambda i: wanted[i])
    assert all(places[b] - places[a] >= 16 for a, b in pairwise(order))


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0, 0.0021), (-3.0, 7.5), (0.0, 0.0), (5.0, 5.0), (12.0, 98_765.0)]
)
def test_axes_are_round_and_hold_their_values(low: float, high: float) -> None:
    axis = charts.linear_axis(low, high)
    assert axis.low <= low and axis.high >= high and axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert all(len(charts.round_figure(tick)) <= 8 for tick in axis.ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12_000, "12,000"),
        (0.03141, "0.0314"),
        (2.5e-5, "2.5e-5"),
        (848.4, "848"),
        (0.1, "0.1"),
        (-1.5, "-1.5"),
    ],
)
def test_figures_are_rounded_to_three_digits(value: float | int, text: str) -> None:
    assert charts.round_figure(value) == text


def test_confusions_are_counted_and_placed(tmp_path: Path) -> None:
    """Planted: nine read as seven 3 of 4 times, seven as one once. Map, lists and sentence agree."""
    cells = [[0, 0, 5], [1, 1, 9], [1, 0, 1], [2, 2, 1], [2, 1, 3]]
    page = page_of(make(tmp_path, rows=ROWS, splits={"test": split(confusion={"image->text": cells})}))
    figure = page.one("figure", "confusion")
    assert "15 of 19 right" in figure.text
    wrong = {(r.attributes["x"], r.attributes["y"]): r for r in figure.all("rect", "wrong")}
    assert set(wrong) == {("0", "1"), ("1", "2")}  # column: read as; row: true
    assert wrong["1", "2"].one("title").text == "nine read as seven: 3 of 4"
    assert float(wrong["1", "2"].attributes["fill-opacity"] or "") == pytest.approx(0.75 ** (1 / 3), abs=0.005)
    confused, hard = ([[c.text for c in r.all("td")] for r in t.one("tbody").all("tr")] for t in figure.all("table"))
    assert confused == [["nine", "seven", "3 of 4"], ["seven", "one", "1 of 10"]]
    assert hard == [["nine", "1 of 4"], ["seven", "9 of 10"]]
    assert (
        page.one("p", "lead").text == "image → text on test: 4 of 19 wrong, most often “nine” read as “seven” (3 of 4)."
    )


def test_classes_that_do_not_occur_have_no_row() -> None:
    """Two classes of ten occur (as the never-seen numbers against all): two rows, ten columns."""
    details = SplitDetails(confusion={"a->text": ((3, 3, 1), (7, 9, 2))}, classes=tuple("abcdefghij"))
    figure = mistakes.mistakes("test", details, True)
    assert figure is not None and 'viewBox="0 0 10 2"' in figure and "only the 2 classes that occur" in figure
    assert 'x="9" y="1"' in figure


def test_a_full_matrix_becomes_a_picture_that_reads_back() -> None:
    """Pillow, which did not write it, finds each cell's strength and colour in the PNG."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, (70, 70))
    cells = [(t, s, int(counts[t, s])) for t in range(70) for s in range(70)]
    drawn = heatmap.heat_map(cells, range(70), [], 70, "map")
    (uri,) = re.findall(r'href="([^"]+)"', drawn)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))
    strength = np.cbrt(counts / counts.sum(1, keepdims=True))
    np.testing.assert_allclose(pixels[..., 3] / 255, strength, atol=0.01)
    assert (pixels[0, 0, 2] > pixels[0, 0, 0]) and (pixels[0, 1, 0] > pixels[0, 1, 2])  # right is blue, wrong is orange


def retrieval(src: str, *answers: dict[str, Any], task: str = "image->text") -> dict[str, Any]:
    return {"task": task, "query": item("image", src=src), "matches": list(answers)}


def test_small_pictures_keep_their_pixels(tmp_path: Path) -> None:
    """A scan of 8 x 16 px is magnified in squares, a photograph of 300 px is not; both say what they are."""
    rng = np.random.default_rng(0)
    small = png(rng.integers(0, 255, (8, 16), np.uint8))
    large = png(rng.integers(0, 255, (200, 300, 3), np.uint8), "JPEG")
    page = page_of(make(tmp_path, splits={"test": split(retrievals=[retrieval(small), retrieval(large)])}))
    first, second = page.all("img")
    assert "pixelated" in (first.attributes["class"] or "") and "pixelated" not in (second.attributes["class"] or "")
    assert (first.attributes["width"], first.attributes["height"]) == ("16", "8")
    assert (second.attributes["width"], second.attributes["height"]) == ("300", "200")
    assert first.attributes["src"] == small and first.attributes["alt"] == "picture image-1, labelled seven"


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x00", b"RIFF" * 9, b"\xff\xd8\xff\xc0\x00\x11"],
)
def test_no_size_is_found_in_damaged_pictures(data: bytes) -> None:
    assert examples.picture_size(data) is None


def test_sounds_are_drawn_as_loud_as_they_are(
    encode_audio: Callable[..., bytes], sine: Callable[..., np.ndarray]
) -> None:
    """One second of silence, then one of a tone: the first half of the outline is flat, the second full."""
    wave = np.concatenate([np.zeros(16_000, np.float32), sine(440, 1.0)])
    heard = examples.loudness(encode_audio(wave, 16_000, "WAV", "PCM_16"))
    assert heard is not None
    seconds, peaks = heard
    assert seconds == 2.0 and max(peaks[:31]) == 0 and min(peaks[33:]) > 0.9
    stereo = examples.loudness(encode_audio(np.stack([wave, 0 * wave], 1), 8_000, "WAV", "PCM_16"))
    assert stereo is not None and stereo[0] == 4.0 and stereo[1] == pytest.approx(peaks, abs=0.01)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"fLaC" + bytes(40), bytes(100)])
def test_what_is_no_wav_has_no_outline(data: bytes) -> None:
    assert examples.loudness(data) is None


def test_sounds_play_without_the_script(
    tmp_path: Path, encode_audio: Callable[..., bytes], sine: Callable[..., np.ndarray]
) -> None:
    src = f"data:audio/wav;base64,{base64.b64encode(encode_audio(sine(440, 0.5))).decode()}"
    written = {
        "task": "audio>text",
        "source": item("audio", src=src),
        "reference": "a",
        "written": "",
        "correct": False,
    }
    page = page_of(make(tmp_path, splits={"test": split(writings=[written])}))
    player = page.one("audio").attributes
    assert player["src"] == src and "controls" in player and player["aria-label"] == "sound audio-1, labelled seven"
    assert page.one("span", "length").text == "0.5 s"
    assert "(nothing)" in page.one("li", "writing").text


def test_hits_and_misses_are_told_in_words(tmp_path: Path) -> None:
    """The mark of an answer is a word, not a colour; the heading counts the queries with a match in first place."""
    hit, miss = ({"item": item("text", name), "score": 0.5, "hit": name == "hit"} for name in ("hit", "miss"))
    found = [retrieval("", hit, miss), retrieval("", miss, hit), retrieval("")]
    group = page_of(make(tmp_path, splits={"test": split(retrievals=found)})).one("div", "examples")
    assert [verdict.text for verdict in group.all("span", "verdict")] == ["✓ hit", "✗ miss", "✗ miss", "✓ hit"]
    assert group.one("summary").text == "image → text on test 1 with a match in first place, 2 without"
    assert len(group.all("div", "fine")) == 1 and len(group.all("div", "failed")) == 2


@pytest.mark.parametrize(
    ("reference", "written", "lacking", "added"),
    [
        ("forty-two", "forty-two", [], []),
        ("the number forty-two", "the number forty-seven", ["two"], ["seven"]),
        ("it says two", "two", ["it says "], []),
        ("two", "", ["two"], []),
        ("a <b> c", "a <i> c", ["b"], ["i"]),
    ],
)
def test_differences_are_marked_by_words(reference: str, written: str, lacking: list[str], added: list[str]) -> None:
    """The marked parts are those planted, and both texts are whole without the marks."""
    reader = Reader()
    left, right = examples.difference(reference, written)
    reader.feed(f"<p>{left}</p><p>{right}</p>")
    first, second = reader.stack[0].all("p")
    assert (first.text, second.text) == (reference, written)
    assert ([n.text for n in first.all("ins")], [n.text for n in second.all("del")]) == (lacking, added)


def test_an_empty_gallery_has_no_section(tmp_path: Path) -> None:
    page = page_of(make(tmp_path, rows=ROWS, splits={"test": split()}))
    assert page.section("examples") is None and page.section("where-it-fails") is None
    data = page.section("data")
    assert data is not None
    cells = [cell.text for cell in data.one("tbody").all("td")]
    assert cells == ["d/test", "9", "8", "1", "9", "2", "3", "the {} "]


def test_commands_quote_what_a_shell_would_split(tmp_path: Path) -> None:
    """A folder with a blank and a pattern with braces can be pasted as they stand."""
    folder = make(tmp_path / "my run", splits={"test": split(source="d/{0..3}.tar")})
    commands = page_of(folder).one("pre").text.splitlines()
    assert commands[1] == f"mmfm eval '{folder}' --data 'd/{{0..3}}.tar' --out '{folder}/results.json'"
    assert commands[2] == f"mmfm report '{folder}'"


def test_figures_of_another_kind_still_get_tiles(tmp_path: Path) -> None:
    """A run without any of the usual scores shows the first that it has, one that is not known as a plain number."""
    page = page_of(make(tmp_path, rows=[row("mine", "x~", "masked_acc@15", 0.5), row("mine", "x", "odd_score", 0.25)]))
    assert [tile.one("strong").text.split("\N{NO-BREAK SPACE}")[0] for tile in page.one("ul", "tiles").all("li")] == [
        "50.0",
        "0.25",
    ]


def test_word_errors_above_one_stretch_the_axis(tmp_path: Path) -> None:
    """A WER of 150 % lies inside its axis, and chance, 100 %, lies left of it."""
    page = page_of(make(tmp_path, rows=[row("test", "audio>text", "wer", 1.5, chance=1.0)]))
    lane = page.one("table", "dots").one("td", "track")
    chance, value = lane.one(kind="chance").attributes["x1"], lane.one("svg").one("svg").attributes["x"]
    assert (chance, value) == ("50.00%", "75.00%")


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    make(tmp_path, rows=ROWS, lines=[line(100, loss=1.0)], splits={"test": split()})
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_the_report_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """Written in a fresh interpreter that cannot see any installed package."""
    make(tmp_path, rows=ROWS, lines=[line(100, loss=1.0)], splits={"test": split()})
    code = f"import pathlib, mmfm.report.report as r; r.write_report(pathlib.Path({str(tmp_path)!r}))"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-S", "-c", code], cwd=root, check=True, timeout=60)
    assert (tmp_path / "report.html").is_file()
