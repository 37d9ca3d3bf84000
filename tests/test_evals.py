"""A model with planted embeddings and texts is evaluated on small shards; the figures must be the planted ones."""

import base64
import errno
import io
import json
import math
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from mmfm import config
from mmfm.config import UserError
from mmfm.config.serialization import to_json
from mmfm.data.batch import Batch
from mmfm.data.decode import Decode, read_example
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.data.splits import named_splits
from mmfm.evals.examples import pick, picture_uri
from mmfm.evals.metrics import Bootstrap
from mmfm.evals.paths import write_json
from mmfm.evals.run import EvalConfig, evaluate, evaluate_run, scores_during_training
from mmfm.evals.split import asked_and_more, at_rest, encode_texts, spread
from mmfm.evals.table import print_split
from mmfm.evals.zero_shot import class_vectors
from mmfm.models.checkpoint import save
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer

TELEPHONE = config.Mel(rate_hz=8_000, high_hz=3_800.0, bins=16)
SMALL = config.Model(
    image=config.Vit(height_px=8, width_px=8, patch_px=4, channels=1, width=16, depth=1, heads=2),
    audio=config.Conformer(mel=TELEPHONE, width=16, depth=1, heads=2, kernel=3),
    text=config.TextTower(width=16, depth=1, heads=2),
    trunk=config.Trunk(width=16, depth=1, heads=2, kv_heads=1),
    embed_dim=8,
)
QUICK = EvalConfig(bootstrap=Bootstrap(resamples=50), batch_size=3)


class Planted(nn.Module):
    """Embeddings by (modality, key) and by text, written texts by key, and a surprise of one bit for each byte."""

    def __init__(
        self,
        vectors: Mapping[tuple[str, str], Sequence[float]],
        texts: Mapping[str, Sequence[float]],
        written: Mapping[str, str] | None = None,
        tasks: tuple[str, ...] = (),
        cfg: config.Model = SMALL,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.vectors, self.texts, self.written, self.tasks = vectors, texts, written or {}, tasks
        self.config, self.tokenizer, self.embed_dim = cfg, load_tokenizer("bytes"), len(next(iter(texts.values())))
        self.modalities = tuple(name for name in config.MODALITIES if getattr(cfg, name) is not None)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        assert not self.training and not torch.is_grad_enabled()
        return {
            name: self._unit([self.vectors[name, batch.keys[row]] for row in items.rows.tolist()])
            for name, items in batch.items.items()
        }

    def encode_text(self, texts: list[str], normalize: bool = True) -> Tensor:
        assert normalize and not self.training
        return self._unit([self.texts[text] for text in texts])

    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]:
        rows = batch.items[task.partition(">")[0]].rows.tolist()
        return rows, [self.written[batch.keys[row]][:max_tokens] for row in rows]

    def nats(self, task: str, batch: Batch) -> Tensor:
        return torch.tensor([math.nan if t is None else math.log(2) * len(t.encode()) for t in batch.texts])

    def _unit(self, rows: list[Sequence[float]]) -> Tensor:
        return F.normalize(self.weight * torch.tensor(rows), dim=-1)


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)).save(out, "PNG")
    return out.getvalue()


def sound(seed: int, rate_hz: int = 8_000) -> bytes:
    out = io.BytesIO()
    wave = 0.3 * np.random.default_rng(seed).standard_normal((rate_hz // 10, 2))
    soundfile.write(out, wave.clip(-1, 1), rate_hz, format="FLAC")
    return out.getvalue()


def shard(path: Path, samples: Mapping[str, Mapping[str, Any]]) -> str:
    """Write key -> {extension: str or bytes, "image" or "audio": seed} as a tar; the folder is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for kind, value in parts.items():
                made = {"image": ("png", picture), "audio": ("flac", sound)}.get(kind)
                name, data = (made[0], made[1](value)) if made else (kind, value)
                data = data.encode() if isinstance(data, str) else data
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path.parent)


def axis(*places: int) -> list[float]:
    """The sum of unit vectors of a space of three, the first ones weighing more."""
    return [sum(1.0 / (1 + n) for n, place in enumerate(places) if place == at) for at in range(3)]


def found(rows: list[dict[str, Any]], task: str, metric: str, key: str = "value") -> Any:
    (row,) = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    return row[key]


NAMES = ("cat", "dog", "owl")
NAMED = {name: axis(place) for place, name in enumerate(NAMES)}
PETS = {
    "a": ("cat", axis(0, 1)),  # right
    "b": ("cat", axis(0, 2)),  # right
    "c": ("cat", axis(1, 0)),  # taken for a dog
    "d": ("dog", axis(1, 2)),  # right
    "e": ("owl", axis(0, 2)),  # taken for a cat
}


def pets(tmp_path: Path, kind: str = "image", **parts: Mapping[str, str]) -> tuple[str, Planted]:
    """The five samples above; `parts` may replace the caption of a key by other parts."""
    samples = {key: {kind: n, **parts.get(key, {"txt": name})} for n, (key, (name, _)) in enumerate(PETS.items())}
    spec = shard(tmp_path / "pets" / "0.tar", samples)
    return spec, Planted({(kind, key): vector for key, (_, vector) in PETS.items()}, NAMED)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_planted_confusion(tmp_path: Path, kind: str) -> None:
    """Three of five right: accuracy counts samples, mean per class counts classes, the confusion names the mistakes."""
    spec, model = pets(tmp_path, kind)
    scores = evaluate(model, spec, split="pets", how=QUICK)
    task = f"{kind}->text"
    assert found(scores.rows, task, "acc@1") == pytest.approx(3 / 5)
    assert found(scores.rows, task, "mean_per_class") == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found(scores.rows, task, "acc@1", "chance") == pytest.approx(1 / 3)
    assert found(scores.rows, task, "acc@5") == 1.0
    assert scores.details["confusion"] == {task: [[0, 0, 2], [0, 1, 1], [1, 1, 1], [2, 0, 1]]}
    other = "audio" if kind == "image" else "image"
    assert scores.details["counts"] == {"samples": 5, kind: 5, other: 0, "text": 5, "without_class": 0}


def test_a_sample_that_cannot_be_used_asks_nothing_and_is_told(tmp_path: Path) -> None:
    """A cut picture, a text that is no UTF-8 and a broken .json leave every figure as it is without them."""
    spec, model = pets(tmp_path)
    clean = evaluate(model, spec, split="pets", how=QUICK)
    samples = {key: {"image": n, "txt": name} for n, (key, (name, _)) in enumerate(PETS.items())}
    bad = {"aa": {"png": picture(9)[:60], "txt": "cat"}, "bb": {"image": 8, "txt": b"\xff\xfe"}}
    bad["cc"] = {"image": 7, "json": "{"}
    ordered = dict(sorted({**samples, **bad}.items()))
    scores = evaluate(model, shard(tmp_path / "more" / "0.tar", ordered), split="pets", how=QUICK)
    assert [{**row, "split": ""} for row in scores.rows] == [{**row, "split": ""} for row in clean.rows]
    (line,) = [line for line in scores.details["left_out"] if "cannot be used" in line]
    told = "image_damaged (1), json_damaged (1), text_not_utf8 (1); the first is aa"
    assert line == f"3 of 8 samples cannot be used: {told}"


def test_the_head_is_the_mean_of_unit_prompts(tmp_path: Path) -> None:
    """Each prompt counts alike, and the head has length one: open_clip's recipe, by hand."""
    texts = {f"a {name}": torch.randn(8).tolist() for name in NAMES} | {
        f"the {name}": torch.randn(8).tolist() for name in NAMES
    }
    model = Planted({}, texts)
    with at_rest(model):
        head = class_vectors(model, NAMES, ("a {}", "the {}"))
    for place, name in enumerate(NAMES):
        parts = [F.normalize(torch.tensor(texts[f"{word} {name}"]), dim=0) for word in ("a", "the")]
        torch.testing.assert_close(head[place], F.normalize(sum(parts), dim=0))


def test_where_a_class_comes_from(tmp_path: Path) -> None:
    """.cls before "label" before the caption, names in any case; what names no class is counted, not guessed."""
    spec, model = pets(
        tmp_path,
        a={"cls": "0", "txt": "dog"},
        b={"json": '{"label": 0}', "txt": "dog"},
        c={"json": '{"label": "CAT"}', "txt": "dog"},
        d={"txt": "Dog."},
        e={"txt": "a barn owl"},
    )
    (tmp_path / "pets" / "classnames.txt").write_text("cat\ndog\n\nowl\n")
    model.texts = {**NAMED, "Dog.": axis(1), "a barn owl": axis(2)}
    scores = evaluate(model, spec, split="pets", how=QUICK)
    assert scores.details["confusion"] == {"image->text": [[0, 0, 2], [0, 1, 1], [1, 1, 1]]}
    assert scores.details["counts"]["without_class"] == 1
    assert found(scores.rows, "image->text", "acc@1", "n") == 4
    assert "1 of 5 samples have none of the 3 classes" in scores.details["left_out"]


@pytest.mark.parametrize(
    "mark, words",
    [("7", r"sample a: class 7 is none of the 3 .*\(0 to 2\); give the right list by --classes"), ("x", "no whole")],
)
def test_a_class_that_is_not_in_the_list(tmp_path: Path, mark: str, words: str) -> None:
    """A .cls beyond the list means a wrong list, and says so."""
    spec, model = pets(tmp_path, a={"cls": mark})
    (tmp_path / "pets" / "classnames.txt").write_text("cat\ndog\nowl\n")
    with pytest.raises(UserError, match=words):
        evaluate(model, spec, split="pets", how=QUICK)


def test_which_classes_and_templates_win(tmp_path: Path) -> None:
    """Given ones, then those beside the shards, then captions and the run's templates."""
    spec, model = pets(tmp_path)
    model.texts = {**NAMED, **{f"{word} {name}": axis(n) for word in "xyz" for n, name in enumerate(NAMES)}}
    folder, default = tmp_path / "pets", replace(QUICK, default_templates=("x {}",))

    def used(how: EvalConfig) -> tuple[list[str], list[str]]:
        details = evaluate(model, spec, split="pets", how=how).details
        return details["classes"], details["templates"]

    assert used(default) == (["cat", "dog", "owl"], ["x {}"])
    (folder / "classnames.txt").write_text("owl\ncat\ndog\n")
    (folder / "templates.txt").write_text("y {}\n")
    assert used(default) == (["owl", "cat", "dog"], ["y {}"])
    (tmp_path / "mine.txt").write_text("dog\ncat\n")
    assert used(replace(default, classes=tmp_path / "mine.txt", templates=("z {}",))) == (["dog", "cat"], ["z {}"])


def test_retrieval_between_what_never_met(tmp_path: Path) -> None:
    """Images and sounds of different samples are relevant by their text; what has no answer is left out and counted."""
    spec = shard(
        tmp_path / "pairs" / "0.tar",
        {
            "i0": {"image": 0, "txt": "cat"},
            "i1": {"image": 1, "txt": "dog"},
            "i2": {"image": 2, "txt": "fox"},  # no sound says this
            "s0": {"audio": 0, "txt": "cat"},
            "s1": {"audio": 1, "txt": "dog"},
            "s2": {"audio": 2, "txt": "dog"},
        },
    )
    planted = {"i0": axis(0), "i1": axis(0, 1), "i2": axis(2), "s0": axis(0), "s1": axis(2), "s2": axis(1)}
    vectors = {("image" if key[0] == "i" else "audio", key): vector for key, vector in planted.items()}
    model = Planted(vectors, {"cat": axis(0), "dog": axis(1), "fox": axis(2)})
    scores = evaluate(model, spec, split="pairs", how=QUICK)
    assert found(scores.rows, "image->audio", "R@1") == 0.5  # i0 finds s0; i1 is nearer to s0 than to s2
    assert found(scores.rows, "image->audio", "median_rank") == 1.5
    assert found(scores.rows, "image->audio", "R@1", "n") == 2
    assert found(scores.rows, "image->audio", "R@1", "chance") == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found(scores.rows, "audio->image", "R@1") == pytest.approx(2 / 3)  # s1 finds i2
    assert found(scores.rows, "text->audio", "R@1", "n") == 2
    assert "image->audio: 1 of 3 queries have no relevant answer to find" in scores.details["left_out"]
    tasks = {row["task"] for row in scores.rows}
    assert tasks == {f"{a}->{b}" for a in ("image", "audio", "text") for b in ("image", "audio", "text") if a != b}


def test_a_wider_gallery_is_chosen_from_and_asks_nothing(tmp_path: Path) -> None:
    """B holds a sound nearer to A's picture than A's own: only where B is added does A's picture miss. Everything that
    is counted, classified or written is A's alone, and chance knows of the larger gallery."""
    own = shard(tmp_path / "a" / "x.tar", {"p": {"image": 1, "txt": "cat"}, "s": {"audio": 2, "txt": "cat"}})
    more = shard(tmp_path / "b" / "x.tar", {"q": {"audio": 3, "txt": "dog"}, "r": {"image": 4, "txt": "dog"}})
    vectors = {("image", "p"): axis(0), ("audio", "s"): axis(1, 0), ("audio", "q"): axis(0, 1), ("image", "r"): axis(2)}
    model = Planted(vectors, NAMED, {"p": "cat"}, ("image>text",))
    alone = evaluate(model, own, split="a", how=QUICK)
    wider = evaluate(model, f"{own}+{more}", split="a", how=QUICK)
    for score, hit, chance in ((alone, 1.0, 1.0), (wider, 0.0, 0.5)):
        assert found(score.rows, "image->audio", "R@1") == hit and found(score.rows, "image->audio", "R@1", "n") == 1
        assert found(score.rows, "image->audio", "R@1", "chance") == chance
        assert (
            found(score.rows, "image>text", "exact_match") == 1
            and found(score.rows, "image>text", "exact_match", "n") == 1
        )
        assert found(score.rows, "text->image", "R@1", "n") == 1
        assert {name: score.details["counts"][name] for name in ("samples", "image", "audio")} == {
            "samples": 2,
            "image": 1,
            "audio": 1,
        }
    assert "2 more samples only widen the galleries of retrieval" in wider.details["left_out"]
    assert [entry["query"]["key"] for entry in wider.details["retrievals"] if entry["task"] == "image->audio"] == ["p"]


def test_a_plus_in_a_name_is_a_name(tmp_path: Path) -> None:
    """A folder that is called a+b is that folder."""
    odd = shard(tmp_path / "a+b" / "x.tar", {"p": {"image": 1, "txt": "cat"}})
    assert asked_and_more(odd) == (odd, "")
    assert named_splits([odd]) == {"a+b": odd}


def test_text_is_asked_once(tmp_path: Path) -> None:
    """The text side holds distinct captions: three for five samples, each with all of its images as answers."""
    spec, model = pets(tmp_path)
    scores = evaluate(model, spec, split="pets", how=QUICK)
    assert found(scores.rows, "text->image", "R@1", "n") == 3
    assert found(scores.rows, "image->text", "R@1", "chance") == pytest.approx(1 / 3)
    assert found(scores.rows, "text->image", "R@1", "chance") == pytest.approx((3 / 5 + 1 / 5 + 1 / 5) / 3)
    assert found(scores.rows, "text->image", "R@5") == 1.0


def test_a_sample_without_text_answers_itself(tmp_path: Path) -> None:
    """Image and sound of one sample belong together also where no text says so, and only they."""
    spec = shard(tmp_path / "pairs" / "0.tar", {key: {"image": n, "audio": n} for n, key in enumerate("ab")})
    vectors = {(kind, key): axis(n) for kind in ("image", "audio") for n, key in enumerate("ab")}
    scores = evaluate(Planted(vectors, NAMED), spec, split="pairs", how=QUICK)
    assert found(scores.rows, "image->audio", "R@1") == 1.0
    assert found(scores.rows, "image->audio", "R@1", "chance") == 0.5
    assert {row["task"] for row in scores.rows} == {"image->audio", "audio->image"}


def test_samples_of_one_picture_are_one_item(tmp_path: Path) -> None:
    """Pairs of a picture and a caption, where each picture comes with two captions: every figure of pictures, captions
    and what is written counts pictures as what was drawn; samples with pictures of their own are as before."""
    words = ("a", "b", "c", "d")
    samples = {f"k{n}": {"image": n // 2, "txt": word} for n, word in enumerate(words)}
    spec = shard(tmp_path / "pairs" / "0.tar", samples)
    vectors = {("image", f"k{n}"): axis(n // 2) for n in range(4)}
    texts = {word: axis(n // 2) for n, word in enumerate(words)}
    model = Planted(vectors, texts, dict.fromkeys(samples, "a"), ("image>text",))
    rows = evaluate(model, spec, split="pairs", how=QUICK).rows
    assert {(row["n"], row["clusters"]) for row in rows} == {(4, 2)} and len({row["task"] for row in rows}) == 3
    alone = shard(tmp_path / "own" / "0.tar", {f"k{n}": {"image": n, "txt": word} for n, word in enumerate(words)})
    assert {row["clusters"] for row in evaluate(model, alone, split="own", how=QUICK).rows} == {4}


def test_planted_writing(tmp_path: Path) -> None:
    """Exact match and error rates over the samples that have a text; one bit per byte of those."""
    spec = shard(
        tmp_path / "clips" / "0.tar",
        {
            "a": {"audio": 0, "txt": "forty two"},
            "d": {"audio": 3},
            "b": {"audio": 1, "txt": "Seven."},
            "c": {"audio": 2, "txt": "one two three"},
            "e": {"txt": "only text"},
        },
    )
    written = {"a": "forty two", "b": "seven", "c": "one too", "d": "never compared"}
    vectors = {("audio", key): axis(n % 3) for n, key in enumerate("abcd")}
    texts = {text: axis(0) for text in ("forty two", "Seven.", "one two three", "only text")}
    model = Planted(vectors, texts, written, ("audio>text", ">text", "image>text"))
    scores = evaluate(model, spec, split="clips", how=QUICK)
    assert found(scores.rows, "audio>text", "exact_match") == pytest.approx(2 / 3)
    assert found(scores.rows, "audio>text", "wer") == pytest.approx(2 / 6)
    assert found(scores.rows, "audio>text", "cer") == pytest.approx(7 / 27)  # "w" -> "o", " three" left out
    assert found(scores.rows, "audio>text", "bits_per_byte") == pytest.approx(1.0)
    assert [found(scores.rows, task, "bits_per_byte", "n") for task in ("audio>text", ">text")] == [3, 4]
    assert not [row for row in scores.rows if row["task"] == "image>text"]
    wrong = [shown for shown in scores.details["writings"] if not shown["correct"]]
    assert [(shown["reference"], shown["written"]) for shown in wrong] == [("one two three", "one too")]


def test_sound_alone(tmp_path: Path) -> None:
    """Clips without any text are classified if a list and a .cls name their classes; nothing else can be scored."""
    spec = shard(tmp_path / "clips" / "0.tar", {key: {"audio": n, "cls": str(n)} for n, key in enumerate("abc")})
    (tmp_path / "clips" / "classnames.txt").write_text("\n".join(NAMES))
    vectors = {("audio", "a"): axis(0), ("audio", "b"): axis(1), ("audio", "c"): axis(1)}
    scores = evaluate(Planted(vectors, NAMED), spec, split="clips", how=QUICK)
    assert {row["task"] for row in scores.rows} == {"audio->text"}
    assert found(scores.rows, "audio->text", "acc@1") == pytest.approx(2 / 3)


def test_nothing_that_the_model_reads(tmp_path: Path) -> None:
    """Sounds and texts for a model that only sees: one line with the shards and what would do."""
    spec = shard(tmp_path / "clips" / "0.tar", {"a": {"audio": 0, "txt": "cat"}})
    model = Planted({}, NAMED, cfg=replace(SMALL, audio=None, text=None))
    with pytest.raises(UserError, match=r"clips: none of its 1 samples has what this model reads \(image\)"):
        evaluate(model, spec, split="clips", how=QUICK)


def test_a_model_that_broke_is_no_score(tmp_path: Path) -> None:
    """Embeddings of NaN compare with nothing; they must not come out as ranks."""
    spec, model = pets(tmp_path)
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(UserError, match="image: the model gives numbers that are not finite"):
        evaluate(model, spec, split="pets", how=QUICK)


def test_scores_during_training_are_those_of_eval(tmp_path: Path) -> None:
    """Same values for the same samples, and the model is left in training mode as it was."""
    spec, model = pets(tmp_path)
    model.tasks, model.written = ("image>text",), dict.fromkeys(PETS, "cat")
    model.train()
    during, _ = scores_during_training(model, config.Run(name="r", data=config.Data(val=spec)))
    assert model.training
    whole = {f"{r['task']}/{r['metric']}": r["value"] for r in evaluate(model, spec, split="pets", how=QUICK).rows}
    assert during == {name: whole[name] for name in during}
    assert set(during) == {
        "image->text/acc@1",
        "image->text/R@1",
        "text->image/R@1",
        "image>text/exact_match",
    }


def test_a_limit_sees_every_class() -> None:
    """Places are distinct, rise, come one from each run, and do not fall into step with classes that take turns."""
    places = spread(1280, 256)
    assert [place // 5 for place in places] == list(range(256))
    assert len({place % 80 for place in places}) > 70  # a stride of five would see 16
    assert spread(7, None) == spread(7, 99) == tuple(range(7))


def test_the_gallery_is_balanced_and_playable(tmp_path: Path) -> None:
    """Half misses where there are enough; pictures are the stored bytes, sounds what the model hears at its rate."""
    assert sum(place < 30 for place in pick(np.arange(60) < 30, 12)) == 6
    assert [place for place in pick(np.arange(60) >= 2, 12) if place < 2] == [0, 1]
    assert len(pick(np.arange(60) >= 2, 12)) == 12 and pick(np.ones(3, bool), 12) == [0, 1, 2]
    samples = {key: {"image": n, "audio": n, "txt": key} for n, key in enumerate("abc")}
    spec = shard(tmp_path / "pairs" / "0.tar", samples)
    vectors = {(kind, key): axis(n) for kind in ("image", "audio") for n, key in enumerate("abc")}
    model = Planted(vectors, {key: axis(n) for n, key in enumerate("abc")})
    shown = evaluate(model, spec, split="pairs", how=QUICK).details["retrievals"]
    first = next(one for one in shown if one["task"] == "image->audio")
    assert first["query"]["src"] == "data:image/png;base64," + base64.b64encode(picture(0)).decode()
    assert [(answer["key"], answer["hit"]) for answer in first["answers"]] == [("a", True), ("b", False), ("c", False)]
    wave, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(first["answers"][0]["src"].split(",")[1])))
    heard = read_example(Shards(expand(spec))[0], SMALL, Decode()).audio
    assert heard is not None and rate_hz == 8_000
    np.testing.assert_allclose(wave, heard.numpy(), atol=1e-4)


def test_a_large_picture_is_shown_small() -> None:
    """Its proportions stay."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 1000, 3), np.uint8)).save(out, "PNG")
    uri = picture_uri("png", out.getvalue())
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (320, 160)


def test_names_of_splits(tmp_path: Path) -> None:
    """NAME=SHARDS, else the folder's name; two equal names are refused, since one would hide the other."""
    for folder in ("a/test", "b/test", "b/x=1"):
        shard(tmp_path / folder / "0.tar", {"k": {"txt": "t"}})
    a, b, odd = (str(tmp_path / folder) for folder in ("a/test", "b/test", "b/x=1"))
    assert named_splits([a, f"other={b}", odd]) == {"test": a, "other": b, "x=1": odd}
    assert named_splits([f"{b}/0.tar"]) == {"test": f"{b}/0.tar"}
    with pytest.raises(UserError, match=f"two splits are called 'test': {a} and {b}; name one NAME={b}"):
        named_splits([a, b])


def saved_run(tmp_path: Path, val: str, **changes: Any) -> config.Run:
    """A run of an untrained small model, as training leaves it."""
    write = tuple(config.Generative(task=task) for task in ("image>text", "audio>text", ">text"))
    made = config.Run(
        name="small", model=SMALL, generative=write, out=str(tmp_path), data=config.Data(val=val), **changes
    )
    torch.manual_seed(0)
    tokenizer = load_tokenizer("bytes")
    core = build(made.model, tokenizer.size, made.contrastive)
    made.folder.mkdir()
    (made.folder / "run.json").write_text(to_json(made))
    save(made.folder, 1, made, tokenizer, core.state_dict(), {})
    return made


def numbers(folder: Path, words: Sequence[str]) -> str:
    """Two images and two sounds of each word, never together."""
    samples: dict[str, dict[str, Any]] = {}
    for n, word in enumerate([*words, *words]):
        samples[f"i{n}"] = {"image": n, "txt": word}
        samples[f"s{n}"] = {"audio": n, "txt": word}
    return shard(folder / "0.tar", samples)


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    """Without --data the splits that the run names; files hold the rows; the batch size changes nothing."""
    val = numbers(tmp_path / "data" / "val", ("one", "two", "three"))
    test = numbers(tmp_path / "data" / "test", ("four", "five"))
    made, said = saved_run(tmp_path, val, eval=config.Eval(splits=(test,))), io.StringIO()
    rows = evaluate_run(made.folder, batch_size=1, max_tokens=4, bootstrap=20, console=Console(file=said, width=80))
    again = evaluate_run(
        made.folder,
        batch_size=7,
        max_tokens=4,
        bootstrap=20,
        out=tmp_path / "b.json",
        console=Console(file=said, width=80),
    )
    assert json.loads((made.folder / "results.json").read_text()) == rows
    assert {row["split"] for row in rows} == {"val", "test"}
    for row, other in zip(rows, again, strict=True):
        assert all(row[key] == pytest.approx(other[key], rel=1e-4) for key in ("value", "low", "high", "chance"))
        assert (
            list(row)[:9] == ["split", "task", "metric", "value", "low", "high", "chance", "n", "clusters"]
            and row["n"] == other["n"]
        )
        assert row["low"] <= row["value"] <= row["high"] or row["n"] < 7
    details = json.loads((made.folder / "results.details.json").read_text())["splits"]
    assert details["test"]["counts"] == {"samples": 8, "image": 4, "audio": 4, "text": 8, "without_class": 0}
    assert (tmp_path / "b.details.json").is_file()
    assert "audio>text" in said.getvalue() and "…" not in said.getvalue()


def test_mistakes_are_told_before_the_work(tmp_path: Path) -> None:
    """A missing run, list, template or shard is one line, and no results are written."""
    val = numbers(tmp_path / "data" / "val", ("one",))
    made = saved_run(tmp_path, val)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.txt").write_text("no place\n")
    for words, options in {
        r"nowhere.txt: No such file or directory; give a text file with one class a line": {"classes": "nowhere.txt"},
        r"empty.txt is empty; give a text file with one class a line": {"classes": tmp_path / "empty.txt"},
        r"bad.txt: the template 'no place' has no \{\}": {"templates": str(tmp_path / "bad.txt")},
        r"the template 'a dog' has no \{\} .*, and there is no file of that name; add": {"templates": ("a dog",)},
        r"there is no 'nothing'": {"data": ["nothing"]},
        r"limit=-1 must be greater than 0": {"limit": -1},
        r"--out .* is a folder; give the name of a file in it": {"out": tmp_path},
        r"cannot make .*empty.txt: File exists; choose another place": {"out": tmp_path / "empty.txt" / "results.json"},
    }.items():
        with pytest.raises(UserError, match=words):
            evaluate_run(made.folder, **options)
    with pytest.raises(UserError, match=r"holds no run.json, so it is no run"):
        evaluate_run(tmp_path / "elsewhere")
    assert not (made.folder / "results.json").exists()


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    """Sounds without texts or classes: the line says what is missing, and no empty results are written."""
    val = shard(tmp_path / "val" / "0.tar", {"a": {"audio": 0}, "b": {"audio": 1}})
    made = saved_run(tmp_path, val)
    with pytest.raises(UserError, match=r"nothing can be scored in .*no classnames.txt.*2 of 2 samples have no text"):
        evaluate_run(made.folder)
    assert not (made.folder / "results.json").exists()


def test_a_full_disk_keeps_the_last_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are replaced whole or not at all, and nothing half-written stays."""
    path = tmp_path / "results.json"
    write_json(path, [1])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*results.json: No space left on device; free some space"):
        write_json(path, [2])
    assert json.loads(path.read_text()) == [1] and list(tmp_path.iterdir()) == [path]


def test_many_texts_are_encoded_in_order(tmp_path: Path) -> None:
    """More texts than fit at once come back as one matrix, row by row."""
    texts = {f"t{n}": torch.randn(4).tolist() for n in range(600)}
    with at_rest(model := Planted({}, texts)):
        x = encode_texts(model, list(texts))
    torch.testing.assert_close(x, F.normalize(torch.tensor(list(texts.values())), dim=-1))


def test_the_table_fits(tmp_path: Path) -> None:
    """A terminal of 80 columns shows every headline figure whole."""
    spec, model = pets(tmp_path)
    scores, said = evaluate(model, spec, split="pets", how=QUICK), io.StringIO()
    print_split("pets", scores.rows, scores.details, Console(file=said, width=80))
    assert "0.600" in said.getvalue() and "5 samples" in said.getvalue() and "…" not in said.getvalue()
