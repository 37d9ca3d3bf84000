"""SmolLM2 as it is, without marks of any kind: what stands around the gap and nothing else, for comparison.

    mmfm train experiments/011-code/plain.py

One step at a rate of nothing leaves the model as it was; "spm" is then the suffix with the prefix behind it, "prefix"
plain continuation, and "psm" has the suffix between both, which no one would ask.
"""

from dataclasses import replace
from pathlib import Path

from mmfm.config import ChatTemplate, Run
from mmfm.config.load import read_run

CODE = Path(__file__).parents[2] / "configs" / "adapt" / "code.py"
PLAIN = ChatTemplate(system=("", ""), user=("", ""), assistant=("", "<|im_end|>"), end="<|im_end|>", strip=False)


def config() -> Run:
    run = read_run(CODE)
    optim = replace(run.optim, steps=1, warmup_steps=0, lr=1e-12)
    return replace(run, name="code-plain", model=replace(run.model, chat=PLAIN), optim=optim)
