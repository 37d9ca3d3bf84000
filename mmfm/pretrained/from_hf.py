"""Encoders of transformers: the tokens are `last_hidden_state` of the part of a model that reads the modality.

architecture: {"config": the configuration as a dict, model_type included}. With the source's own pool and projection
(`get_image_features` and its like) it has "parts" too: those children of the whole model that these need. What drops
layers or masks inputs at random while it trains is switched off in it: how a tower is trained is said by the run.
"""

import json
from dataclasses import replace
from typing import Any, cast

import torch
from huggingface_hub import constants
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig

from mmfm.config import AudioPreprocess, EncoderSpec, TokenizerSpec, Tower, UserError, require
from mmfm.pretrained import architecture_schema
from mmfm.pretrained.encoder import (
    Resolved,
    Weights,
    architecture,
    finish,
    leaves,
    prefixed,
    scalars_of,
)
from mmfm.pretrained.hf_encoders import KINDS, HfSound, build, measured, parts_of, trunk_of
from mmfm.pretrained.hf_preprocessors import extractor_of, pixels_of, sound_of
from mmfm.pretrained.sentencepiece import siglip_words
from mmfm.pretrained.source import Source, fetching, present, require_complete, require_safetensors
from mmfm.pretrained.tokenizer_spec import require_room, words_of_hf

OFF = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False, "use_cache": False}


def resolve(source: Source, tower: Tower, modality: str) -> Resolved:
    name = source.name
    pretrained = tower.weights == "pretrained"
    with fetching(tower.source, f"the repository {name} (config.json)", str(constants.HF_HUB_CACHE), False):
        config = architecture_schema.hf_config(
            AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict(), tower.source
        )
    if pretrained and source.folder is not None:
        require_safetensors(source.folder)
    if not pretrained:
        return resolve_parts(config, None, name, tower, modality)
    with fetching(tower.source, f"the repository {name} (model.safetensors)", str(constants.HF_HUB_CACHE)):
        how: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "use_safetensors": True}
        model, said = AutoModel.from_pretrained(name, config=config, trust_remote_code=False, **how)
    trunk = model if tower.pool == "source" else trunk_of(model, modality, name)
    resolved = resolve_parts(config, dict(trunk.state_dict()), name, tower, modality, trunk)
    _whole(model, trunk, said["missing_keys"], resolved.blueprint, name)
    return replace(resolved, scalars=scalars_of(dict(model.named_parameters())) if trunk is model else {})


def resolve_parts(
    config: PreTrainedConfig,
    weights: Weights | None,
    name: str,
    tower: Tower,
    modality: str,
    trunk: nn.Module | None = None,
) -> Resolved:
    """Of a configuration and weights at hand; `name`, a folder or a repository, is where preprocessing is described.

    trunk: the module that has these weights, where the library itself loaded it.
    """
    kind, embeds = config.model_type, tower.pool == "source"
    inner, own, before = sub_config(quiet(config), modality)
    config = quiet(config) if embeds else inner
    contract: dict[str, Any] = {}
    tokenizer = None
    if modality == "image":
        contract["pixels"] = pixels_of(name, own, kind, tower)
    elif modality == "text":
        contract["words"], tokenizer = words_of(name, own, before)
    else:
        contract["sound"] = sound_of(extractor_of(name, own, kind, tower.source))
        own_seconds = contract["sound"].window_seconds
        config, contract["sound"], weights = shorten(config, contract["sound"], weights, tower.window_seconds)
        trunk = trunk if contract["sound"].window_seconds == own_seconds else None
    draft = EncoderSpec(library="hf", modality=cast(Any, modality), architecture=describe(config), width=1, **contract)
    if embeds:
        parts = embedding_parts(draft, name)
        draft = replace(draft, architecture=json.dumps(architecture(draft) | {"parts": parts}))
        weights = weights and {key: x for key, x in weights.items() if key.partition(".")[0] in parts}
    elif modality == "audio":
        draft = _with_lengths(draft, tower.source)
    return finish(draft, build, None if weights is None else prefixed(weights), tokenizer, trunk)


def _with_lengths(draft: EncoderSpec, source: str) -> EncoderSpec:
    """What its padding becomes, measured: a model that shortens its input may have no method that says it, or a wrong
    one."""
    encoder = build(draft).eval()
    assert isinstance(encoder, HfSound)
    try:
        found = measured(encoder)
    except (AssertionError, RuntimeError, ValueError, TypeError, IndexError):
        return draft  # what it cannot be run on is said by `finish`
    if found is None:
        return draft
    told = (
        f"{source}: how many of its tokens are real, of a sound that is padded, follows no rule; give another encoder"
    )
    require(found.holds, told)
    return replace(draft, architecture=json.dumps(architecture(draft) | {"lengths": [found.stride, found.more]}))


def embedding_parts(draft: EncoderSpec, source: str) -> list[str]:
    """Those parts of the whole model that its own embedding of the modality is made of, by where its gradient goes.

    UserError: transformers has no such embedding of this model.
    """
    shape, modality = architecture(draft), draft.modality
    model = AutoModel.from_config(architecture_schema.hf_config(shape["config"], source), trust_remote_code=False)
    told = f"{source} is a {type(model).__name__}, which has no embedding of {modality} of its own"
    require(hasattr(model, f"get_{modality}_features"), f"{told}; say --modality {modality} for its encoder alone")
    whole = replace(draft, architecture=json.dumps(shape | {"parts": []}))
    encoder = KINDS[modality](whole, model).eval()
    with torch.inference_mode(False), torch.enable_grad():
        read = {id(leaf) for leaf in leaves(encoder(*encoder.example()).x)}
    return sorted(name for name, own in parts_of(model).items() if any(id(one) in read for one in own))


def describe(config: PreTrainedConfig) -> str:
    return json.dumps({"config": architecture_schema.described(config)})


def sub_config(config: PreTrainedConfig, modality: str) -> tuple[PreTrainedConfig, PreTrainedConfig, int]:
    """What to build the part from, the part's own configuration, and how many of its positions no token has.

    The two are the same where a model of the latter has the part's very parameters: the rest is then never built.
    """
    with torch.device("meta"):
        trunk = trunk_of(AutoModel.from_config(config, trust_remote_code=False), modality, config.model_type)
        own, before = cast(Any, trunk).config, _before(trunk)
        if type(own) is type(config) or type(own) not in MODEL_MAPPING:
            return config, own, before
        alone = trunk_of(AutoModel.from_config(own, trust_remote_code=False), modality, own.model_type)
    shapes = [{name: value.shape for name, value in part.state_dict().items()} for part in (trunk, alone)]
    return (own if shapes[0] == shapes[1] else config), own, before


def _before(trunk: nn.Module) -> int:
    """In a table of positions with a padding index, as RoBERTa's, they are counted from behind it."""
    for name, table in trunk.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.padding_idx + 1
    return 0


def quiet(config: PreTrainedConfig) -> PreTrainedConfig:
    known = config.to_dict()
    return type(config).from_dict(known | {name: value for name, value in OFF.items() if name in known})


def words_of(name: str, config: PreTrainedConfig, before: int = 0) -> tuple[TokenizerSpec, str]:
    """The tokenizer beside the weights, as what it does."""
    found = _siglip(name, config, before)
    if found is not None:
        return found
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as why:  # a damaged file is an error of each format's own
        told = " ".join(f"{type(why).__name__}: {why}".split())[:200]
        raise UserError(
            f"{name} has no tokenizer that can be read ({told}); put its tokenizer.json beside its config.json"
        ) from None
    require(
        _has_words(name, tokenizer), f"{name} has no file of a tokenizer; put its tokenizer.json beside its config.json"
    )
    words, text = words_of_hf(tokenizer, context_of(config) - before)
    require_room(words, name)
    return words, text


def _has_words(name: str, tokenizer: Any) -> bool:
    """Whether a file of its vocabulary is there: without any, transformers makes an empty tokenizer of the kind."""
    files = dict.fromkeys(("tokenizer.json", *type(tokenizer).vocab_files_names.values()))
    return any(present(name, file, name) is not None for file in files)


def _siglip(name: str, config: PreTrainedConfig, before: int) -> tuple[TokenizerSpec, str] | None:
    """SigLIP's, of which there is a spiece.model alone."""
    if not config.model_type.startswith("siglip") or present(name, "tokenizer.json", name) is not None:
        return None
    model = present(name, "spiece.model", name)
    if model is None:
        return None
    return siglip_words(model, present(name, "tokenizer_config.json", name), context_of(config) - before, name)


def context_of(config: PreTrainedConfig) -> int:
    """Positions that the model has; 512 where they are relative and it sets no limit."""
    inner = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if getattr(inner, name, None):
            return int(getattr(inner, name))
    return 512


def shorten(
    config: PreTrainedConfig, sound: AudioPreprocess, weights: Weights | None, seconds: float
) -> tuple[PreTrainedConfig, AudioPreprocess, Weights | None]:
    """A shorter window: the later positions of the table are left out. What is seen in it then differs from a long one.

    For such models as say their window in the extractor and their positions in `max_source_positions` (Whisper).
    """
    if not seconds or seconds == sound.window_seconds:
        return config, sound, weights
    full = getattr(config, "max_source_positions", None)
    require(
        bool(full and sound.window_seconds),
        f"window_seconds={seconds}: {config.model_type} has no fixed window of positions to cut; leave it out",
    )
    require(
        seconds < sound.window_seconds,
        f"window_seconds={seconds} is longer than the {sound.window_seconds} s that its positions cover",
    )
    assert full is not None
    count = round(full * seconds / sound.window_seconds)
    shorter = type(config).from_dict(config.to_dict() | {"max_source_positions": count})
    if weights is not None:
        weights = {
            name: value[:count].clone() if "position" in name and len(value) == full else value
            for name, value in weights.items()
        }
    return shorter, replace(sound, window_seconds=seconds), weights


def _whole(model: nn.Module, trunk: nn.Module, missing: set[str], made: EncoderSpec, name: str) -> None:
    """transformers fills what a file lacks with random numbers; none of them may reach the tokens."""
    names = {id(value): key for key, value in trunk.named_parameters()}
    lacking = {names.get(id(value)) for key, value in model.named_parameters() if key in missing} - {None}
    lacking -= {key.removeprefix("trunk.") for key in architecture(made)["unread"]}
    remedy = "give a source that holds them, or set the tower's weights to 'random'"
    require_complete([str(key) for key in lacking], name, remedy)
