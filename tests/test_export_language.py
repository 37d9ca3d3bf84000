"""A trunk leaves as the plain Llama or Qwen that it is: transformers opens it alone, and it comes back bit for bit."""

from pathlib import Path

import pytest
import torch
from exported import export as exported_run
from exported import full_run
from safetensors.torch import load_file
from test_importing import language
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmfm.__main__ import main
from mmfm.config import Trunk, UserError
from mmfm.export import importer
from mmfm.export.command import export
from mmfm.inference.bundle.load import load_trunk
from mmfm.models.mappings import Foreign, language_config
from mmfm.models.mappings.language import trunk as trunk_of

TRUNK = {"width": 16, "depth": 2, "heads": 4, "kv_heads": 2}
KINDS = {
    "llama": {},
    "Llama 3.1 with biases": {"rope_scaling": (8.0, 1.0, 4.0, 16.0), "qkv_bias": True, "out_bias": True},
    "qwen2": {"qkv_bias": True, "hidden": 40, "max_position_embeddings": 64},
    "qwen3": {"qk_norm": True, "head_dim": 8, "rope_theta": 1e6, "tie_embeddings": False},
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_runs_trunk_is_transformers_own(kind: str, tmp_path: Path) -> None:
    """AutoModelForCausalLM opens it without any code of ours; its logits of a text are those of `>text`."""
    given = exported_run(tmp_path, full_run(trunk=Trunk(**TRUNK, **KINDS[kind])))
    core = given.model.core
    main(["export", str(given.run), str(tmp_path / "out"), "--to", "hf", "--part", "trunk"])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__module__.startswith("transformers.models.") and theirs.config.model_type in kind.lower()
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("forty-two", return_tensors="pt")["input_ids"]
    (states,) = core.trunk([core.target(ids, torch.ones_like(ids, dtype=torch.bool))])
    logits = core.logits(states)
    torch.testing.assert_close(theirs(input_ids=ids).logits, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    written = theirs.generate(ids[:, :1], max_new_tokens=6)[0, 1:]
    expected = given.model.core.vocabulary.local("text", written[written != theirs.config.eos_token_id])
    assert given.model.generate(">text", max_tokens=6) == given.model.tokenizer.decode(expected.tolist())


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_there_and_back_is_bit_equal(tied: bool, tmp_path: Path) -> None:
    """A language model becomes a bundle, the bundle its folder again: every tensor and every id is what it was."""
    language(tmp_path / "lm", tied)
    importer.import_source(str(tmp_path / "lm"), tmp_path / "bundle")
    export(tmp_path / "bundle", "hf", tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("lm", "out"))
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("forty-two")["input_ids"] == [256, *b"forty-two"], "with the mark that it had"
    importer.import_source(str(tmp_path / "out"), tmp_path / "again")
    one, other = (load_trunk(tmp_path / name)[0].state_dict() for name in ("bundle", "again"))
    assert all(torch.equal(one[name], value) for name, value in other.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_comes_back(kind: str) -> None:
    part = Trunk(**TRUNK, **KINDS[kind])
    again = trunk_of(Foreign(library="hf", architecture=language_config(part, 20), modality="text"))
    one, other = language_config(again, 20), language_config(part, 20)
    assert one | {"max_position_embeddings": 0} == other | {"max_position_embeddings": 0}, "ours has a limit or none"


def test_what_is_no_llama_is_refused(tmp_path: Path) -> None:
    """Biases that no such model has; a part of another target."""
    with pytest.raises(UserError, match="one for the output alone"):
        language_config(Trunk(**TRUNK, out_bias=True), 20)
    with pytest.raises(UserError, match="--part trunk is for --to hf"):
        export(tmp_path, "onnx", tmp_path / "out", part="trunk")
