"""A modality of one's own, in a file outside the package: read from shards, trained with text, opened again."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import asked, evaluate, value
from toys import toy_config

import mmfm
from mmfm.config import Contrastive, Data, Eval, Generative, Optim, Run, Source, UserError, extend, modality_names
from mmfm.config import modalities as table
from mmfm.config.serialization import from_json, to_json
from mmfm.config.task import parse
from mmfm.evals.config import config_of
from mmfm.evals.suite import KNN, Classify, Retrieve, Tars
from mmfm.preprocessing import BadSample
from mmfm.training import fit

DEPTH = Path(__file__).parent.parent / "configs" / "extensions" / "depth.py"
NAMES = ("left", "right", "top", "bottom")


def plane(kind: int, noise: np.random.Generator) -> bytes:
    """A slope that is nearest at one of four sides."""
    down, across = np.meshgrid(np.linspace(1, 5, 16), np.linspace(1, 5, 16), indexing="ij")
    depth = (across, across[:, ::-1], down, down[::-1])[kind] + 0.2 * noise.random((16, 16))
    out = io.BytesIO()
    np.save(out, depth.astype(np.float32))
    return out.getvalue()


@pytest.fixture(scope="module")
def depth_class():
    """The file executed, and forgotten afterwards: other tests know three modalities."""
    tables = (table.FILES, table.EXTENSIONS, table._own)
    before = [type(part)(part) for part in tables]
    yield extend.execute(DEPTH).Depth
    for part, old in zip(tables, before, strict=True):
        part.clear()
        part.extend(old) if isinstance(part, list) else part.update(old)


@pytest.fixture
def run(tmp_path, write_shard, depth_class) -> Run:
    draw = np.random.default_rng(0)
    for split, count in (("train", 64), ("val", 16)):
        samples = {f"{i:02d}": {"npy": plane(i % 4, draw), "txt": NAMES[i % 4].encode()} for i in range(count)}
        write_shard(tmp_path / split / "depth.tar", samples)
    return Run(
        name="depth",
        out=str(tmp_path),
        model=toy_config(image=None, audio=None, modalities=(depth_class(width=16),)),
        data=Data(
            train=(Source(shards=str(tmp_path / "train"), modalities=("depth", "text")),),
            val=str(tmp_path / "val"),
            batch_size=16,
        ),
        contrastive=(Contrastive(pair=("depth", "text")),),
        generative=(Generative(task="depth>text"),),
        optim=Optim(steps=60, lr=5e-3, warmup_steps=5),
        eval=Eval(every_steps=0),
        accelerator="cpu",
    )


def test_it_learns_which_text_a_depth_map_has(run):
    """Slopes never seen find their names, by embedding and by writing; the run is opened with its file alone."""
    fit.train(run)
    model = mmfm.load(run.folder)
    assert model.modalities == ("text", "depth")
    draw = np.random.default_rng(1)
    found = model.encode_own("depth", [plane(kind, draw) for kind in range(4)]) @ model.encode_text(list(NAMES)).T
    assert found.argmax(1).tolist() == [0, 1, 2, 3]
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss/depth>text"] < 0.5 * np.log(256)
    saved = json.loads((run.folder / "run.json").read_text())["model"]["modalities"]
    assert saved[0]["extension"] == "depth.py:Depth" and saved[0]["options"]["width"] == 16


def test_the_table_knows_it(run, depth_class):
    """In tasks, pairs and JSON; it is read and never written; what is no depth map is a bad sample."""
    assert modality_names() == ("image", "audio", "text", "depth")
    assert parse("depth>text").sources == ("depth",)
    assert from_json(to_json(run)) == run
    with pytest.raises(UserError, match="targets are image, audio, text"):
        parse("text>depth")
    with pytest.raises(UserError, match="no modality called 'heat'"):
        parse("heat>text")
    with pytest.raises(UserError, match="given twice"):
        replace(run.model, modalities=(depth_class(), depth_class()))
    for data in (b"none", plane(0, np.random.default_rng(0))[:-9]):
        with pytest.raises(BadSample):
            depth_class().decode(data)


def test_a_step_without_it_trains_too(run, tmp_path, write_shard):
    """Beside a source of text alone: its draws are its own, and a batch may hold none of it."""
    write_shard(tmp_path / "more" / "text.tar", {f"{i}": {"txt": b"far"} for i in range(16)})
    text = Source(shards=str(tmp_path / "more"), modalities=("text",))
    data = replace(run.data, train=(*run.data.train, text), mix_by="batch", batch_size=8)
    goals = (Generative(task="depth>text", condition_dropout=0.5, sample_fraction=0.5), Generative(task=">text"))
    run = replace(run, data=data, generative=goals, optim=replace(run.optim, steps=8))
    fit.train(run)
    weights = mmfm.load(run.folder).core.state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_it_is_scored_as_the_others_are(run, tmp_path, depth_class):
    """Plain evaluation and suites ask it for classes, neighbours and retrieval, and agree; once it has learned, its
    figures are far above chance."""
    fit.train(run)
    model = mmfm.load(run.folder)
    spec = str(tmp_path / "val")
    plain = evaluate(model, spec, config_of(run))
    assert value(plain, "depth->text", "R@1") > 0.9 and value(plain, "depth->text", "acc@1") > 0.9
    assert value(plain, "text->depth", "R@1", "n") == 4 and plain.details.counts["depth"] == 16
    data, known = Tars(shards=spec), Tars(shards=str(tmp_path / "train"))
    tasks = (Retrieve(data=data, pair=("depth", "text")), Classify(data=data, classes=NAMES, modality="depth"))
    scores = asked(model, tmp_path, *tasks, KNN(train=known, test=data, modality="depth", k=3), config=config_of(run))
    assert value(scores, "depth->text", "acc@1") == value(plain, "depth->text", "acc@1")
    assert value(scores, "text->depth", "R@10", "n") == 16 and value(scores, "depth:knn", "acc@1") > 0.9
    with pytest.raises(UserError, match="must be one of image, audio, depth"):
        KNN(train=known, modality="thermal")
