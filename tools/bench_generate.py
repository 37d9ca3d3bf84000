"""Writing by our trunk against transformers' generate: the same weights, greedy, one thread, the same tokens.

A Llama of 30M parameters is made at random, converted by `mmfm.models.mappings`, and both write behind the same
prompt of 32 ids: one row of 48 ids, and 8 rows of 32. transformers runs as it comes, with its growing cache. Ours is
`mmfm.generation`, in fp32 and with linear maps of 8 bits, whose ids may differ. A round runs every way once, in
changing order; what counts is the processor's time, and the median of the rounds' ratios. Logits of every step are
compared with those of one pass over the whole sentence.

    python tools/bench_generate.py [--rounds 15] [--out tools/bench_generate.json]
"""

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import in_turns, ratios, row, seconds, write_report
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mmfm.config import Model, Trunk
from mmfm.data.vocabulary import MARKS
from mmfm.generation import GenerationConfig, int8
from mmfm.generation.decoding_state import DecodingState
from mmfm.generation.generate import steps
from mmfm.models.mappings import Foreign, convert
from mmfm.models.model import UnifiedModel, build

WORDS, PROMPT = 8_000, 32
SHAPES = {1: 48, 8: 32}  # rows: new ids
LLAMA = LlamaConfig(
    vocab_size=WORDS + len(MARKS),
    hidden_size=512,
    intermediate_size=1_376,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    eos_token_id=None,
)


@torch.no_grad()
def models() -> tuple[Any, UnifiedModel]:
    """transformers' and ours. Rows of the output that belong to marks are zero: none of them is ever the likeliest."""
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LLAMA).eval()
    theirs.lm_head.weight[: len(MARKS)] = 0
    converted = convert(Foreign(library="hf", architecture=LLAMA.to_dict(), modality="text"), theirs.state_dict())
    assert isinstance(converted.part, Trunk) and converted.embedding is not None and converted.output is not None
    ours = build(Model(trunk=converted.part, image=None, audio=None, text=None, embed_dim=8), WORDS).eval()
    ours.trunk.load_state_dict(converted.weights)
    assert ours.output is not None
    ours.embedding.weight.copy_(converted.embedding)
    ours.output.weight.copy_(converted.output)
    return theirs, ours


def prompt(model: UnifiedModel, rows: int) -> Tensor:
    """Ids of the vocabulary, the begin mark last."""
    ids = torch.randint(len(MARKS), WORDS, (rows, PROMPT), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = model.vocabulary.begin("text")
    return ids


@torch.no_grad()
def pen_for(model: UnifiedModel, ids: Tensor, new: int) -> DecodingState:
    cache = model.trunk.new_cache(PROMPT + new)
    model.trunk([model.target(ids[:, :-1], torch.ones_like(ids[:, :-1], dtype=torch.bool))], cache)
    begin, end = ids[:, -1], model.vocabulary.end
    return DecodingState(model=model, target="text", cache=cache, weights=(1.0,), begin=begin, end=end)


def by_us(model: UnifiedModel, ids: Tensor, new: int) -> Tensor:
    pen = pen_for(model, ids, new)
    found = steps(pen, torch.zeros(len(ids), dtype=torch.int64), GenerationConfig(max_tokens=new))
    return torch.tensor([step.ids for step in found]).T + len(MARKS)


def by_them(model: Any, ids: Tensor, new: int) -> Tensor:
    how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)[:, PROMPT:]


@torch.no_grad()
def off(model: UnifiedModel, ids: Tensor, written: Tensor) -> float:
    """The largest difference of a logit, step by step over the cache and in one pass without one."""
    whole = torch.cat([ids, written[:, :-1]], dim=1)
    (states,) = model.trunk([model.target(whole, torch.ones_like(whole, dtype=torch.bool))])
    pen = pen_for(model, ids, written.shape[1])
    full, worst = pen.at(1)(states[:, PROMPT - 1 :]), 0.0
    for step, token in enumerate(whole[:, PROMPT - 1 :].T):
        worst = max(worst, float((pen.scores(token, 1) - full[:, step]).abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    theirs, ours = models()
    small, rows = int8(copy.deepcopy(ours)), []
    for count, new in SHAPES.items():
        ids = prompt(ours, count)
        expected = by_them(theirs, ids, new)
        if not torch.equal(by_us(ours, ids, new), expected):
            sys.exit(f"{count} rows: other ids than transformers': nothing to compare")
        ways: dict[str, Callable[[], Tensor]] = {
            "transformers": lambda ids=ids, new=new: by_them(theirs, ids, new),
            "ours": lambda ids=ids, new=new: by_us(ours, ids, new),
            "int8": lambda ids=ids, new=new: by_us(small, ids, new),
        }
        same = float((ways["int8"]() == expected).float().mean())
        taken = in_turns({name: lambda run=run: seconds(run) for name, run in ways.items()}, args.rounds)
        name = f"batch {count}, {new} new"
        rows += [row(f"{name}: {way}", [count * new / s for s in taken[way]], unit="tokens/s") for way in ways]
        goals = {"ours": ">= 1.2" if count == 1 else ">= 1", "int8": ">= 2.4" if count == 1 else ""}
        for way, goal in goals.items():
            rows.append(
                row(
                    f"{name}: {way} over transformers",
                    ratios(taken["transformers"], taken[way]),
                    unit="times",
                    goal=goal,
                )
            )
        rows.append(row(f"{name}: ids of int8 that are those of fp32", [same], unit="of 1"))
        rows.append(row(f"{name}: cached logits off", [off(ours, ids, expected)], unit="logits", goal="<= 1e-4"))
    size = sum(parameter.numel() for parameter in theirs.parameters())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_report(args.out, rows, versions, parameters=size, threads=1)


if __name__ == "__main__":
    main()
