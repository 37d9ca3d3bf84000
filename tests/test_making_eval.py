"""What is drawn and said on a split is read by judges, beside the real; planted judges have planted answers."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from planted import SMALL, evaluate, saved_run, shard, value
from test_eval_ranks import on_ranks
from test_making import TOKENIZER, codec_run, toy_interface
from test_report import page_of
from torch import Tensor

from mmfm.config import Data, UserError
from mmfm.config.serialization import to_json
from mmfm.data.sample import Sample
from mmfm.evals.config import EvalConfig, GenerationEvalConfig
from mmfm.evals.examples import SHOWN
from mmfm.evals.generation import Generated, Own, Product
from mmfm.evals.judges import choose
from mmfm.evals.metrics import Bootstrap
from mmfm.evals.records import HeldOut, JudgeInfo
from mmfm.evals.run import evaluate_run
from mmfm.evals.split import SampleInfo, Split
from mmfm.inference.interface import Interface
from mmfm.models.checkpoint import save
from mmfm.runtime.distributed import SingleProcess

WORDS = ("dark", "light")
QUICK = {"bootstrap": Bootstrap(resamples=20), "batch_size": 3, "max_tokens": 2}


class Shade:
    """Reads a picture by its mean, a sound by the sign of its first sample."""

    def __init__(self, of: str) -> None:
        self.name, self.of = f"shade of {of}", of

    def read(self, things: Sequence[Tensor], rate_hz: int = 0) -> list[str]:
        assert (rate_hz == 16_000) == (self.of == "audio")
        return [WORDS[int(thing.float().mean() > (127 if self.of == "image" else 0))] for thing in things]


@pytest.fixture(autouse=True)
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, of in (("eye", "image"), ("ear", "audio")):
        monkeypatch.setitem(choose.JUDGES, name, lambda folder, of=of: Shade(of))


@pytest.fixture(scope="module")
def model() -> Interface:
    return toy_interface(codec_run())


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 16), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def split(folder: Path) -> str:
    """Six pictures with texts, one of which is labelled as it does not look; two sounds; two texts alone."""
    samples: dict[str, dict[str, Any]] = {
        f"i{n}": {
            "png": png(250 * (n % 2)),
            "txt": f"it is {WORDS[n % 2]}",
            "json": json.dumps({"label": WORDS[n % 2]}),
        }
        for n in range(5)
    }
    samples |= {"wrong": {"png": png(0), "txt": "it is light", "json": json.dumps({"label": "light"})}}
    samples |= {f"s{n}": {"audio": n, "txt": WORDS[n]} for n in range(2)}
    samples |= {f"t{n}": {"txt": WORDS[n]} for n in range(2)}
    spec = shard(folder / "0.tar", samples)
    (folder / "classnames.txt").write_text("\n".join(WORDS))
    return spec


def asked(model: Interface, spec: str, **asking: Any):
    return evaluate(model, spec, EvalConfig(**QUICK, generation=GenerationEvalConfig(**asking)))


def told(scores: Any, task: str, metric: str) -> tuple[float, int]:
    return value(scores, task, metric), value(scores, task, metric, "n")


def test_what_is_read_is_compared_with_the_class(model: Interface, tmp_path: Path):
    """In the split's own five of six; in what is drawn just where the judge says so of what `make` makes, seed by row;
    chance is the best constant answer."""
    spec = split(tmp_path / "val")
    scores = asked(model, spec, judges=("eye",), tasks=("text>image",))
    assert told(scores, "text>image", "shade of image/read real") == (pytest.approx(5 / 6), 6)
    wanted = ["dark", "light", "dark", "light", "dark", "light"]
    texts = [f"it is {word}" for word in (*wanted[:5], "light")]
    drawn = [model.generate("text>image", text=text, seed=row) for row, text in enumerate(texts)]
    read = Shade("image").read([torch.from_numpy(np.array(one)) for one in drawn])
    right = sum(a == b for a, b in zip(read, wanted, strict=True)) / 6
    assert told(scores, "text>image", "shade of image/read") == (pytest.approx(right), 6)
    assert next(row.chance for row in scores.rows if "/read" in row.metric) == 0.5
    back = [
        model.decode("image", model.encode("image", Image.fromarray(np.full((8, 16), 250 * (w == "light"), np.uint8))))
        for w in (*wanted[:5], "dark")
    ]
    read = Shade("image").read([torch.from_numpy(np.array(one)) for one in back])
    right = sum(a == b for a, b in zip(read, wanted, strict=True)) / 6
    assert told(scores, "text>image", "shade of image/read decoded") == (pytest.approx(right), 6)


class Schooled(Shade):
    """Has learned from the dark pictures, and reads nine of ten others right."""

    learned_from = "dark pictures"

    def met(self, sample: Sample) -> bool:
        return sample.parts["png"] == png(0)

    def held_out(self) -> HeldOut:
        return HeldOut(on="light pictures", right=9, of=10)


def test_a_judge_is_not_asked_about_what_it_has_learned_from(
    model: Interface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the split's own pictures those that it knows are left out, and told; how well it reads others is a figure, and
    the details say which judge it was."""
    monkeypatch.setitem(choose.JUDGES, "eye", lambda folder: Schooled("image"))
    scores = asked(model, split(tmp_path / "val"), judges=("eye",), tasks=("text>image",))
    for kind in ("read real", "read decoded"):
        assert told(scores, "text>image", f"shade of image/{kind}")[1] == 2
    assert told(scores, "text>image", "shade of image/read")[1] == 6
    assert told(scores, "judge shade of image", "shade of image/held_out") == (pytest.approx(0.9), 10)
    line = "of 6 of the split's own it has learned from the scans or voices of 4, and is not asked about these"
    assert f"judge shade of image: {line}" in scores.details.left_out
    tried = HeldOut(on="light pictures", right=9, of=10)
    about = JudgeInfo(of="image", learned_from="dark pictures", held_out=tried)
    assert scores.details.judges == {"shade of image": about}


def test_all_tasks_that_draw_or_say_something_are_asked(model: Interface, tmp_path: Path):
    """Also without the target in the sample, as a text alone has no sound; each is made where its sources are."""
    scores = asked(model, split(tmp_path / "val"), judges=("eye", "ear"))
    counts = {row.task: row.n for row in scores.rows if row.metric.endswith("/read")}
    assert counts == {
        "text>image": 6,
        "text>audio": 2,
        "audio>audio": 2,
        "image~": 6,
        "text>image~": 6,
        "audio~": 2,
    }
    assert told(scores, ">image", "shade of image/named") == (1.0, 6)  # this judge reads a name in anything
    lines = scores.details.left_out
    assert "text>audio: made for 2 of the 10 samples" in lines


def test_options_go_to_the_tasks_that_take_them(model: Interface, tmp_path: Path):
    """Of the run's own tasks; what goes without is told. Of tasks that were named an option that does not fit is a
    mistake."""
    spec = split(tmp_path / "val")
    scores = asked(model, spec, judges=("eye",), most=2, options={"guidance": 3.0})
    assert [line for line in scores.details.left_out if "without guidance" in line] == [
        f"{task}: made without guidance, which it does not take"
        for task in ("text>audio", ">image", "audio>audio", "image~", "text>image~", "audio~")
    ]
    with pytest.raises(UserError, match=r"guidance of text>audio needs"):
        asked(model, spec, judges=("ear",), tasks=("text>audio",), options={"guidance": 3.0})


def test_a_chain_is_asked_by_its_name(model: Interface, tmp_path: Path):
    scores = asked(model, split(tmp_path / "val"), judges=("ear",), tasks=("image>text>audio",), most=4)
    assert told(scores, "image>text>audio", "shade of audio/read")[1] == 4
    with pytest.raises(UserError, match="not trained on 'image>audio'"):
        asked(model, split(tmp_path / "b"), judges=("ear",), tasks=("image>audio",))


def test_without_judges_things_are_made_to_be_looked_at(model: Interface, tmp_path: Path):
    """--num-samples alone: no figures, no verdicts, but pictures and sounds; nothing said makes nothing."""
    spec = split(tmp_path / "val")
    plain, made = asked(model, spec), asked(model, spec, most=3)
    assert plain.rows == made.rows and not plain.details.generations
    shown = made.details.generations
    assert {one.made.src[:14] for one in shown} == {"data:image/png", "data:audio/wav"}
    assert all(one.correct is None and one.read == {} for one in shown)


def test_any_number_of_ranks_makes_the_same(model: Interface, tmp_path: Path):
    """1, 2 and 3 ranks: rows and gallery, byte for byte."""
    spec = split(tmp_path / "val")
    how = EvalConfig(**QUICK, generation=GenerationEvalConfig(judges=("eye", "ear"), most=5))

    def score(ranks: Any) -> Any:
        return evaluate(deepcopy(model), spec, how, ranks=ranks)

    alone = score(SingleProcess())
    for size in (2, 3):
        first, *others = on_ranks(size, score)
        assert first == alone and not any(other.rows for other in others)


@pytest.mark.parametrize(
    ("asking", "words"),
    [
        ({"judges": ("nose",)}, "no judge 'nose'; there are digits, speech, whisper"),
        ({"judges": ("ear",), "tasks": ("text>image",)}, "judge 'shade of audio'|the judge 'ear' reads audio"),
        ({"judges": ("eye",), "tasks": ("text>image",), "options": {"best_of": 0}}, "best_of=0 must be above 0"),
        ({"options": {"best_of": 2}}, "--best-of says how things are made; say what: --judges or --num-samples"),
        ({"most": -1}, "--num-samples -1 must not be negative"),
    ],
)
def test_what_cannot_be_judged_says_why(model: Interface, tmp_path: Path, asking: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        asked(model, split(tmp_path / "val"), **asking)


def test_a_run_without_codecs_makes_nothing(tmp_path: Path):
    assert SMALL.codecs == {}
    made = saved_run(tmp_path, split(tmp_path / "val"))
    with pytest.raises(UserError, match="this run draws and says nothing; it writes image>text, audio>text, >text"):
        evaluate_run(made.folder, generation=GenerationEvalConfig(judges=("eye",)))


class Counts:
    """Samples that nobody reads."""

    @property
    def ignored(self) -> Counter[str]:
        return Counter()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, sample: int, /) -> Sample:
        raise IndexError


def test_readings_beside_the_class():
    """One right judge is enough for the verdict; a sample without a class has none, and no figure counts it."""
    products = [
        Product(0, [1], 0, {"a": "One.", "b": "two"}),
        Product(1, [1], 0, {"a": "two", "b": ""}),
        Product(2, [1], 0, {"a": "x", "b": "y"}),
    ]
    own = {0: Own(0, {"a": "one", "b": "one"}, {"a": "two", "b": "one"})}
    making = Generated(products={"text>image": products}, own={"image": own}, expected=("one", "one", None))
    assert [making.right("text>image", product) for product in products] == [True, False, None]

    infos = tuple(SampleInfo(f"k{n}", None, (None, None), "") for n in range(3))
    split = Split(name="s", source="s", samples=Counts(), places=(), infos=infos, own=3)
    found = {score.metric: (score.value, score.n, score.items) for score in making.scores(split)}
    assert found == {
        "a/read": (0.5, 2, ("k0", "k1")),
        "a/read real": (1.0, 1, ("k0",)),
        "a/read decoded": (0.0, 1, ("k0",)),
        "b/read": (0.0, 2, ("k0", "k1")),
        "b/read real": (1.0, 1, ("k0",)),
        "b/read decoded": (1.0, 1, ("k0",)),
    }


def test_the_report_shows_what_was_drawn_and_said(model: Interface, tmp_path: Path):
    """Each thing as a picture or a player, with its caption, what was read, the verdict, and the split's own beside."""
    spec = split(tmp_path / "val")
    run = codec_run(name="r", out=str(tmp_path), data=Data(val=spec))
    run.folder.mkdir()
    (run.folder / "run.json").write_text(to_json(run))
    save(run.folder, 1, run, TOKENIZER, model.core.state_dict(), {})
    rows = evaluate_run(
        run.folder,
        data=[spec],
        batch_size=3,
        bootstrap=20,
        generation=GenerationEvalConfig(judges=("eye", "ear"), most=6),
    )
    details = json.loads((run.folder / "results.details.json").read_text())["splits"]["val"]["generations"]
    page = page_of(run.folder)
    cards = page.all("li", "making")
    assert len(cards) == len(details) and max(map([one["task"] for one in details].count, ("text>image",))) <= SHOWN
    for card, one in zip(cards, details, strict=True):
        state = card.one("span", "verdict").text
        assert (state == "✓ read right") is one["correct"] and ("failed" in card.attributes["class"]) is not one[
            "correct"
        ]
        assert one["made"]["src"] in [node.attributes["src"] for node in (*card.all("img"), *card.all("audio"))]
        assert next(iter(one["read"].values())) in card.one("dl", "readings").text
        assert (card.all("div", "own") != []) is (one["own"] is not None)
    drawn = next(one for one in details if one["task"] == "text>image")
    assert drawn["own"]["src"].startswith("data:image/png") and drawn["sources"][0]["caption"].startswith("it is ")
    assert page.one("h3", having="as judges read it") and rows
    assert "the same judge, in the split's own" in page.text
    assert "writes images in 8 codes of 9" in page.text and "writes sounds in codes of 9" in page.text
