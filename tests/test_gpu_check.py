"""tools/gpu_check.py runs where torch is and nothing else, as on a bare machine with a GPU; here on the CPU, at toy
size, where each of its checks must hold. What needs a GPU is not run here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import torchaudio.functional

ROOT = Path(__file__).parent.parent
OF_TORCH = (
    "torch", "torchgen", "functorch", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe",
    "filelock", "fsspec",
)  # fmt: skip


def test_all_that_runs_on_a_cpu_holds_with_torch_alone(tmp_path: Path) -> None:
    site, bare, out = Path(torch.__file__).parent.parent, tmp_path / "bare", tmp_path / "found.json"
    bare.mkdir()
    for name in OF_TORCH:
        (there,) = [path for path in (site / name, site / f"{name}.py") if path.exists()]
        (bare / there.name).symlink_to(there)
    told = f"import sys, runpy; sys.path[:0] = [{str(bare)!r}, {str(ROOT / 'tools')!r}]; sys.argv = sys.argv[1:]"
    code = f"{told}; runpy.run_path(sys.argv[0], run_name='__main__')"
    checks = ["layers", "losses", "codecs", "attention", "step", "speed"]  # a compiler takes a minute here
    asked = ["tools/gpu_check.py", "--device", "cpu", "--small", "--out", str(out), "--only", *checks]
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", code, *asked]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["not_installed"] == ["jaxtyping", "numpy", "safetensors", "torchaudio"]
    assert len(found["rows"]) > 25 and all(row["ok"] for row in found["rows"])


def test_a_bound_that_is_not_kept_is_told(tmp_path: Path) -> None:
    """And a check that breaks: the exit status is 1, and the other rows are there."""
    code = (
        "import sys; sys.path.insert(0, 'tools'); import gpu_check;"
        "gpu_check.CHECKS = {'one': lambda *_: [gpu_check.row('far', 2.0, '<= 1')], 'two': lambda *_: 1 / 0};"
        f"sys.exit(gpu_check.main(['--device', 'cpu', '--out', {str(tmp_path / 'out.json')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    first, second = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert not first["ok"] and "ZeroDivisionError" in second["error"]


def test_the_stand_in_for_mel_banks_is_torchaudios() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    import gpu_check

    how = (257, 20.0, 7_600.0, 40, 16_000)
    theirs = torchaudio.functional.melscale_fbanks(*how, norm=None, mel_scale="htk")
    torch.testing.assert_close(gpu_check.melscale_fbanks(*how, norm=None, mel_scale="htk"), theirs)
