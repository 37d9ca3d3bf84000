"""Objectives, callbacks and loggers of one's own: files outside the package, trained with, recorded and asked for."""

import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import toy_batch, toy_config, toy_model, toy_run

import mmfm
from mmfm.__main__ import main
from mmfm.config import Contrastive, Data, Eval, Objective, Optim, Run, Source, UserError, extend
from mmfm.config.load import read_run
from mmfm.config.serialization import from_json, to_json
from mmfm.objectives.joint import Objectives
from mmfm.training import fit

EXAMPLES = Path(__file__).parent.parent / "configs" / "extensions"
margin_loss = extend.execute(EXAMPLES / "margin_loss.py")
MarginLoss = margin_loss.MarginLoss


@pytest.fixture
def run(tmp_path, write_shard, encode_image) -> Run:
    draw = np.random.default_rng(0)
    names = (b"zero", b"one", b"two", b"three")
    pictures = {
        f"{i:02d}": {"png": encode_image(draw.integers(0, 255, (8, 16), dtype=np.uint8)), "txt": names[i % 4]}
        for i in range(16)
    }
    write_shard(tmp_path / "data" / "image.tar", pictures)
    return Run(
        name="toy",
        out=str(tmp_path),
        model=toy_config(audio=None),
        data=Data(train=(Source(shards=str(tmp_path / "data"), modalities=("image", "text")),), batch_size=8),
        optim=Optim(steps=4, warmup_steps=1),
        eval=Eval(every_steps=0),
        accelerator="cpu",
    )


def test_a_hinge_of_planted_vectors():
    """The hardest wrong row counts, within the margin and both ways; one of the same text is none."""
    a = torch.eye(3, dtype=torch.float64)
    b = torch.stack([a[0], (a[1] + a[0]) / 2**0.5, a[2]])
    wrong = ~torch.eye(3, dtype=torch.bool)
    found = margin_loss.margin_loss(a, b, a, b, wrong, margin=0.2)
    right = [float(a[i] @ b[i]) for i in range(3)]
    near = [[float(x @ y) for y in b] for x in a]
    costs = [max(0.0, *(0.2 + near[i][j] - right[i] for j in range(3) if j != i)) for i in range(3)]
    costs += [max(0.0, *(0.2 + near[j][i] - right[i] for j in range(3) if j != i)) for i in range(3)]
    assert float(found) == pytest.approx(sum(costs)) == pytest.approx(0.2)
    assert float(margin_loss.margin_loss(a, b, a, b, wrong & False, margin=0.2)) == 0


def test_an_objective_of_ones_own_is_added_to_the_loss():
    """It gets the embeddings that the contrastive objective gets, of samples that hold both."""
    model, batch = toy_model(), toy_batch()
    plain = Objectives(model, toy_run())
    both = Objectives(model, toy_run(objectives=(MarginLoss(weight=0.5),)))
    before, after = plain(batch), both(batch)
    assert after.keys() - before.keys() == {"MarginLoss"}
    torch.testing.assert_close(both.total(after), plain.total(before) + 0.5 * after["MarginLoss"])
    alone = Objectives(model, toy_run(contrastive=(), generative=(), objectives=(MarginLoss(),)))
    torch.testing.assert_close(alone(batch)["MarginLoss"], after["MarginLoss"])


def test_a_run_with_all_of_it(run, monkeypatch):
    """Losses go into metrics.jsonl by name, a callback adds its own, a logger hears all; then the folder is opened."""
    told, wandb = [], types.ModuleType("wandb")
    writer = types.SimpleNamespace(id="toy", log=lambda line, step: told.append((step, line)), finish=lambda: None)
    wandb.init = lambda **options: told.append(("init", options)) or writer
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    logger = extend.execute(EXAMPLES / "wandb_logger.py").Wandb()
    norms = extend.execute(EXAMPLES / "weight_norms.py").WeightNorms(every_steps=2)
    run = replace(run, objectives=(MarginLoss(margin=0.3),), loggers=(logger,), callbacks=(norms,))
    fit.train(run)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (last,) = (line for line in lines if "loss" in line)
    assert last["loss"] == last["loss/MarginLoss"] > 0
    assert [line["step"] for line in lines if "norm/trunk" in line] == [2, 4]
    assert told[0][1]["mode"] == "offline" and any("loss/MarginLoss" in line for step, line in told[1:] if step == 4)
    saved = json.loads((run.folder / "run.json").read_text())["objectives"][0]
    assert saved["extension"] == "margin_loss.py:MarginLoss" and saved["options"]["margin"] == 0.3
    assert mmfm.load(run.folder).run == run


def alone(code: str, *words: object) -> str:
    """What a process that knows of no extension says; without the tests' own check of annotations."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, mmfm\n{code}", *map(str, words)], capture_output=True, text=True
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


OPEN = """
from mmfm.config import UserError
for given in ([], *([path] for path in sys.argv[2:])):
    try:
        mmfm.load(sys.argv[1], extensions=given)
        print("opened")
    except UserError as why:
        print(why)
"""


READ = """
from mmfm.config import UserError
from mmfm.config.load import read_run
for path in sys.argv[1:]:
    try:
        print(read_run(path).objectives[0].margin)
    except UserError as why:
        print(why)
"""


def test_a_saved_run_asks_for_its_file(run, tmp_path):
    """Never found by itself, not even inside the run's folder or at its old place; refused when it has changed."""
    mine, changed, source = tmp_path / "mine.py", tmp_path / "other" / "mine.py", EXAMPLES / "margin_loss.py"
    changed.parent.mkdir()
    for path, more in ((mine, ""), (changed, "\n# changed\n")):
        path.write_text(source.read_text() + more)
    fit.train(replace(run, objectives=(extend.execute(mine).MarginLoss(),)))
    (run.folder / "mine.py").write_text(source.read_text())
    bare, other, right = alone(OPEN, run.folder, changed, mine).splitlines()
    assert "--extension mine.py" in bare and "mine.py is not as it was" in other and right == "opened"


def test_what_cannot_be_one(run, tmp_path, capfd):
    """One line each: no such class, a class of another kind, no file behind it, no file given."""
    with pytest.raises(UserError, match="MarginLos'"), extend.beside(EXAMPLES / "x.py"):
        Objective.named("margin_loss.py:MarginLos")
    with pytest.raises(UserError, match="'hinge' is no Objective"):
        Objective.named("hinge")
    tree = json.loads(to_json(replace(run, objectives=(MarginLoss(),))))
    tree["objectives"][0]["options"]["margin"] = "wide"
    with pytest.raises(UserError, match=r"objectives\[0\].options.margin"):
        from_json(json.dumps(tree))
    assert main(["report", str(tmp_path), "--extension", "none.py"]) == 2
    assert "none.py" in capfd.readouterr().err


def test_a_configuration_imports_its_neighbors(tmp_path):
    """A file beside it, and by the name of its folder; two folders do not meet."""
    for folder, steps in (("one", 300), ("two", 400)):
        package = tmp_path / folder / "runs_of_mine"
        package.mkdir(parents=True)
        (package / "base.py").write_text(f"STEPS = {steps}\n")
        text = "from mmfm.config import Optim, Run\nimport base\nfrom runs_of_mine.base import STEPS\n"
        (package / "run.py").write_text(text + "def config():\n    return Run(name='a', optim=Optim(steps=STEPS))\n")
        path = list(sys.path)
        assert read_run(package / "run.py").optim.steps == steps
        assert sys.path == path


def test_the_ranks_of_an_evaluation_are_given_the_same_files(tmp_path, monkeypatch):
    """Each opens the run, and so needs the extension, however the first was given it."""
    commands = []

    def met(count, command):
        commands.append(command)
        raise UserError("met")

    monkeypatch.setattr("mmfm.runtime.rendezvous.assembled", met)
    monkeypatch.setattr(extend, "_given", [])
    mine = str(EXAMPLES / "margin_loss.py")
    assert main(["eval", "runs/a", "--extension", f"{mine}:MarginLoss", "--ranks", "2"]) == 2
    ((_, *words),) = commands
    assert words == ["-m", "mmfm", "eval", "runs/a", "--ranks", "2", "--extension", mine]
    assert main(["eval", "runs/a", "--extension", f"{mine}:Hinge"]) == 2 and len(commands) == 1


def test_suites_of_training_are_looked_at_before_it(run, tmp_path, capfd):
    """A file that is not there, and data that is not, are told at once, in one line, by --check and by the start."""
    lost, here = tmp_path / "lost.py", tmp_path / "mine.py"
    here.write_text("""from mmfm.evals.suite import Retrieve, Suite, Tars
def suite():
    return Suite(name="mine", tasks=(Retrieve(data=Tars(shards=".")),), root="nowhere-at-all")
""")
    saved = tmp_path / "run.json"
    for suite, told in ((lost, "eval.suites: there is no suite"), (here, "eval.suites: there is no folder nowhere-at")):
        scored = replace(run, objectives=(), contrastive=(Contrastive(pair=("image", "text")),))
        saved.write_text(to_json(replace(scored, eval=replace(run.eval, suites=(str(suite),)))))
        for words in (["--check"], []):
            assert main(["train", str(saved), *words]) == 2
            error = capfd.readouterr().err
            assert told in error and error.count("\n") == 1


def test_a_configuration_names_a_file_beside_it(tmp_path):
    """With the options that it has by default; "file.py:Name" of another kind is refused where it is given."""
    (tmp_path / "margin_loss.py").write_text((EXAMPLES / "margin_loss.py").read_text())
    text = "from mmfm.config import Run\ndef config():\n    return Run(name='a', {}=('margin_loss.py:MarginLoss',))\n"
    fields = ("objectives", "callbacks")
    for field in fields:
        (tmp_path / f"{field}.py").write_text(text.format(field))
    margin, refusal = alone(READ, *(tmp_path / f"{field}.py" for field in fields)).splitlines()
    assert margin == "0.2" and "has no Callback called 'MarginLoss'" in refusal


def test_the_configurations_of_the_project_are_a_package(monkeypatch):
    """From the repository's root, where a script or a notebook of one's own stands."""
    monkeypatch.syspath_prepend(EXAMPLES.parent.parent)
    from configs.quickstart import config

    assert config() == read_run(EXAMPLES.parent / "quickstart.py")
