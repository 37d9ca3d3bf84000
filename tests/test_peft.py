"""Adapters to PEFT's folders and back, and merged: what transformers and PEFT compute is what the run does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from adapted import LORA, adapted_run, bundle_of_llama
from safetensors.torch import load_file, save_file
from test_importing import language
from toys import toy_config

import mmfm
from mmfm.__main__ import main
from mmfm.config import Lora, Optim, Run, UserError
from mmfm.config.serialization import to_json
from mmfm.data.batch import Tokens
from mmfm.export.bundle import save_bundle
from mmfm.export.command import export
from mmfm.export.merge import merge
from mmfm.inference import bundle
from mmfm.inference.interface import Interface
from mmfm.models.adapters import adapters_of
from mmfm.models.checkpoint import save
from mmfm.models.model import build
from mmfm.models.transformer import Segment
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.training import fit
from mmfm.training.initialize import begin, prepare

# PEFT asks transformers for what it calls otherwise by now.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
SOME = {
    "all layers": (Lora(rank=2, alpha=4.0),),
    "rs, some layers": (Lora(pattern="trunk.*.attn.*", rank=2, alpha=3.0, scaling="rs"),),
    "dora": (Lora(rank=2, alpha=4.0, dora=True),),
}


def moved_run(folder: Path, adapters: tuple[Lora, ...]) -> Path:
    """A run of one step whose adapters are moved by hand, as a checkpoint in which all weights are."""
    run = adapted_run(folder, *adapters, optim=Optim(steps=1, warmup_steps=0))
    prepared = prepare(run)
    torch.manual_seed(0)
    core = build(prepared.run.model, prepared.tokenizer.size, run.contrastive)
    begin(core, prepared)
    with torch.no_grad():
        for _, part in adapters_of(core):
            for parameter in (part.lora_a, part.lora_b):
                parameter += 0.2 * torch.randn_like(parameter)
            if part.lora_m is not None:
                part.lora_m *= 1 + 0.2 * torch.rand_like(part.lora_m)
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(to_json(prepared.run))
    save(run.folder, 1, prepared.run, prepared.tokenizer, core.state_dict(), {})
    return run.folder


@torch.no_grad()
def logits(model: Interface) -> torch.Tensor:
    """Of a causal reading of IDS over the rows of text."""
    core, span = model.core, model.core.vocabulary.span("text")
    tokens = Tokens(core.embedding(IDS + span.start), torch.ones_like(IDS, dtype=torch.bool))
    (states,) = core.trunk([Segment(tokens, causal=True)])
    return core.logits(states)[..., span.start : span.stop]


@pytest.mark.parametrize("kind", SOME)
def test_peft_on_transformers_llama_gives_the_logits_of_the_run(kind: str, tmp_path: Path) -> None:
    """The folder is read by PEFT alone, over the language model that the trunk began as."""
    run = moved_run(tmp_path, SOME[kind])
    assert main(["export", str(run), str(tmp_path / "out"), "--to", "peft"]) == 0
    base = hf.LlamaForCausalLM.from_pretrained(tmp_path / "lm")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    expected = logits(mmfm.load(run, device="cpu"))
    found = theirs(input_ids=IDS).logits[..., : expected.shape[-1]]
    assert (expected - logits_of_base(tmp_path)).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert "connectors" in json.loads((tmp_path / "out/export.json").read_text())["not_written"]


def logits_of_base(folder: Path) -> torch.Tensor:
    base = hf.LlamaForCausalLM.from_pretrained(folder / "lm")
    return base(input_ids=IDS).logits.detach()[..., : load_tokenizer(folder / "bundle/mmfm_tokenizer.json").size]


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]])
@pytest.mark.parametrize("dora", [False, True])
def test_a_folder_of_peft_comes_back_as_fused_adapters(targets: list[str], dora: bool, tmp_path: Path) -> None:
    """Of adapters that PEFT made and moved, of some of the parts of a fused layer or of all."""
    folder = bundle_of_llama(tmp_path)
    how = {"r": 3, "lora_alpha": 5, "target_modules": targets, "use_dora": dora, "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(language(tmp_path / "lm"), peft.LoraConfig(**how)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter += 0.2 * torch.rand_like(parameter)
    theirs.save_pretrained(tmp_path / "peft")
    adapters = mmfm.from_peft(tmp_path / "peft")
    fused = {lora.pattern.rpartition(".")[2]: lora.rank for lora in adapters}
    assert fused == ({"qkv": 6} if len(targets) == 2 else {"qkv": 3, "proj": 3, "gate_up": 6, "down": 3})
    words = str(folder / "mmfm_tokenizer.json")
    cfg = toy_config(trunk=mmfm.native(str(folder)), tokenizer=words, adapters=adapters)
    run = Run(name="toy", model=cfg)
    prepared = prepare(run)
    core = build(cfg, prepared.tokenizer.size).eval()
    begin(core, prepared)
    expected = theirs(input_ids=IDS).logits.detach()
    found = logits(Interface(core, run, prepared.tokenizer))
    torch.testing.assert_close(found, expected[..., : found.shape[-1]], rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_there_and_back_is_exact(tmp_path: Path) -> None:
    """What is written and read again adds to the weights what it added, to the bit but for the order of a sum."""
    run = moved_run(tmp_path, SOME["all layers"])
    export(run, "peft", tmp_path / "out")
    model = mmfm.load(run, device="cpu")
    cfg = replace(model.config, adapters=mmfm.from_peft(tmp_path / "out"))
    prepared = prepare(replace(model.run, model=cfg))
    core = build(cfg, prepared.tokenizer.size, model.run.contrastive)
    begin(core, prepared)
    before, after = dict(adapters_of(model.core)), dict(adapters_of(core))
    assert before.keys() == after.keys()
    for name, part in before.items():
        torch.testing.assert_close(after[name].update(), part.update(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "is of peft_type 'IA3'; read here is 'LORA'"),
        ({"bias": "all"}, "bias='all' has no place here; merge it in PEFT"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern=.* has no place here"),
        ({"target_modules": "all-linear"}, "target_modules names 'all-linear'; read here are down_proj"),
        ({"target_modules": ["lm_head"]}, "target_modules names 'lm_head'"),
        ({"r": None}, "adapter_config.json cannot be read"),
    ],
)
def test_folders_that_choose_what_has_no_place_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words):
        mmfm.from_peft(tmp_path)


def test_another_rank_or_another_model_is_refused(tmp_path: Path) -> None:
    run = moved_run(tmp_path, SOME["all layers"])
    export(run, "peft", tmp_path / "out")
    model = mmfm.load(run, device="cpu")
    cfg = replace(model.config, adapters=(Lora(rank=2, weights=str(tmp_path / "out")),))
    prepared = prepare(replace(model.run, model=cfg))
    with pytest.raises(UserError, match=r"which trunk.blocks.0.attn.qkv of rank 2 cannot hold; see mmfm.from_peft"):
        begin(build(cfg, prepared.tokenizer.size, model.run.contrastive), prepared)
    held = load_file(tmp_path / "out/adapter_model.safetensors")
    more = {"base_model.model.model.layers.7.mlp.down_proj.lora_A.weight": torch.zeros(2, 2)}
    save_file(held | more, tmp_path / "out/adapter_model.safetensors")
    cfg = replace(model.config, adapters=mmfm.from_peft(tmp_path / "out"))
    prepared = prepare(replace(model.run, model=cfg))
    with pytest.raises(UserError, match=r"adapts .*layers.7.* and no pattern of Model.adapters takes it"):
        begin(build(cfg, prepared.tokenizer.size, model.run.contrastive), prepared)


# Merged


@pytest.mark.parametrize("base", ["fp32", "bf16", "int8"])
def test_a_merged_run_is_the_run_without_its_base(base: Any, tmp_path: Path, capsys: Any) -> None:
    """By `mmfm merge`: equal logits, and nothing that it began with is needed."""
    run = adapted_run(tmp_path, replace(LORA, base=base), optim=Optim(steps=2, lr=3e-2, warmup_steps=0))
    folder = fit.train(run)
    model = mmfm.load(folder, device="cpu")
    expected = logits(model)
    assert main(["merge", str(folder), str(tmp_path / "merged")]) == 0
    line, _ = capsys.readouterr().out.strip().splitlines()[-2:]
    assert line.startswith("8 adapters are merged in fp32: on fixed inputs a layer differs by at most ")
    (tmp_path / "bundle").rename(tmp_path / "gone")
    merged = mmfm.load(tmp_path / "merged", device="cpu")
    assert not merged.config.adapters and not [*adapters_of(merged.core)]
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(merged.encode_text(["one"]), model.encode_text(["one"]), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="merged has no adapters, and nothing is to be merged"):
        merge(tmp_path / "merged", tmp_path / "again")


def test_a_bundle_and_an_encoder_of_such_a_run_are_merged(tmp_path: Path) -> None:
    """Of adapters of a tower and of the trunk: what others are given is whole."""
    adapters = (LORA, Lora(pattern="towers.text.*", rank=2))
    run = adapted_run(tmp_path, *adapters, optim=Optim(steps=2, lr=3e-2, warmup_steps=0))
    folder = fit.train(run)
    model = mmfm.load(folder, device="cpu")
    expected = model.encode_text(["one", "three"], normalize=True)
    encoder = mmfm.load_encoder("text", folder, device="cpu")
    torch.testing.assert_close(encoder.embed(["one", "three"]), expected, rtol=0, atol=1e-5)
    save_bundle(folder, tmp_path / "whole")
    again = mmfm.load(tmp_path / "whole", device="cpu")
    assert not again.config.adapters
    torch.testing.assert_close(again.encode_text(["one", "three"], normalize=True), expected, rtol=0, atol=1e-5)
    core = build(replace(again.config, adapters=adapters), again.tokenizer.size, run.contrastive)
    bundle.start_whole(core, replace(run, start=str(tmp_path / "whole")), again.tokenizer)
    started = Interface(core.eval(), run, again.tokenizer)
    torch.testing.assert_close(started.encode_text(["one", "three"], normalize=True), expected, rtol=0, atol=1e-5)


def test_what_is_written_fast_and_in_8_bits_has_the_adapters(tmp_path: Path) -> None:
    """The fast step merges for the while; 8 bits are of the merged weights."""
    folder = fit.train(adapted_run(tmp_path, optim=Optim(steps=8, lr=3e-2, warmup_steps=0)))
    model = mmfm.load(folder, device="cpu")
    merge(folder, tmp_path / "merged")
    merged = mmfm.load(tmp_path / "merged", device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    for seed in range(3):
        how = {"image": picture, "max_tokens": 8, "temperature": 1.0, "seed": seed}
        written = model.generate("image>text", **how)
        assert written and written == merged.generate("image>text", **how)
    one, other = (mmfm.load(each, device="cpu", dtype="int8") for each in (folder, tmp_path / "merged"))
    torch.testing.assert_close(one.encode_text(["one"]), other.encode_text(["one"]), rtol=0, atol=1e-5)
