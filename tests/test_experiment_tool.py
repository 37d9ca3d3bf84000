"""What an experiment keeps of its runs: only what is of the same configuration, words and weights."""

import json
import runpy
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import SMALL

from mmfm import config
from mmfm.config.load import read_run
from mmfm.config.serialization import to_json
from mmfm.evals.provenance import origin_of
from mmfm.models.checkpoint import save
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer

TOOLS = Path(__file__).parent.parent / "tools"


class Commands:
    """`mmfm train` and `mmfm eval` in small: a checkpoint of the run's seed, and one row of its weights."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, command: Sequence[str]) -> float:
        kind, place, *words = command[3:]
        self.asked.append(kind)
        if kind == "train":
            options = dict(zip(words[::2], words[1::2], strict=False))
            run = replace(read_run(place), name=options["--name"], out=options["--out"], seed=int(options["--seed"]))
            torch.manual_seed(run.seed)
            tokenizer = load_tokenizer("bytes")
            run.folder.mkdir(parents=True, exist_ok=True)
            (run.folder / "run.json").write_text(to_json(run))
            core = build(run.model, tokenizer.size, run.contrastive)
            save(run.folder, run.optim.steps, run, tokenizer, core.state_dict(), {})
        else:
            last = max((Path(place) / "checkpoints").glob("step-*"))
            row = {"split": "test", "task": "image->text", "metric": "acc@1", "value": 0.5, "n": 4}
            row |= {"low": 0.4, "high": 0.6, "chance": 0.01}
            (Path(place) / "results.json").write_text(json.dumps([{**row, **asdict(origin_of(last)), "data": "d"}]))
        return 1.0


def arm(folder: Path, steps: int) -> Path:
    """A config file called one.py."""
    folder.mkdir(parents=True, exist_ok=True)
    made = config.Run(name="x", model=SMALL, optim=config.Optim(steps=steps, warmup_steps=1))
    (folder / "run.json").write_text(to_json(made))
    code = (
        f"from mmfm.config.load import read_run\n\n\ndef config():\n    return read_run({str(folder / 'run.json')!r})\n"
    )
    (folder / "one.py").write_text(code)
    return folder / "one.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[dict[str, Any], Commands]:
    monkeypatch.syspath_prepend(TOOLS)
    tool, commands = runpy.run_path(str(TOOLS / "experiment.py")), Commands()
    for name, value in {"cpu_seconds": commands, "RUNS": tmp_path / "runs"}.items():
        monkeypatch.setitem(tool["run_one"].__globals__, name, value)
    return tool, commands


def test_a_run_is_kept_only_while_it_is_the_same(tool: tuple[dict[str, Any], Commands], tmp_path: Path) -> None:
    """A second start does nothing; another configuration trains and scores anew, other words and other weights score
    anew, and an arm of the same name in another experiment is another run."""
    run_one, commands = tool[0]["run_one"], tool[1]
    one = arm(tmp_path / "001", steps=3)
    run_one(one, 0)
    assert commands.asked == ["train", "eval"]
    (row,) = run_one(one, 0)["rows"]
    assert commands.asked == ["train", "eval"] and row["step"] == 3
    run_one(one, 0, ["--judges", "digits"])
    assert commands.asked[2:] == ["eval"]
    run_one(arm(tmp_path / "002", steps=5), 0, ["--judges", "digits"])
    assert commands.asked[3:] == ["train", "eval"]
    arm(tmp_path / "001", steps=4)
    assert run_one(one, 0, ["--judges", "digits"])["rows"][0]["step"] == 4
    assert commands.asked[5:] == ["train", "eval"]
    folder = tmp_path / "runs" / "001-one-0"
    stale = [{**row, "weights": "00000000"} for row in json.loads((folder / "results.json").read_text())]
    (folder / "results.json").write_text(json.dumps(stale))
    run_one(one, 0, ["--judges", "digits"])
    assert commands.asked[7:] == ["eval"]


def test_stale_scores_are_not_gathered(
    tool: tuple[dict[str, Any], Commands], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gather.py ends with one line that names the remedy, where a run has other weights than were scored."""
    tool[0]["run_one"](arm(tmp_path / "001", steps=3), 0)
    fresh, folder = runpy.run_path(str(TOOLS / "gather.py"))["fresh"], tmp_path / "runs" / "001-one-0"
    assert len(fresh(folder)) == 1
    rows = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps([{**row, "step": 2} for row in rows]))
    with pytest.raises(SystemExit, match=r"results.json is of step 2, which .*; score it again: mmfm eval"):
        fresh(folder)
