"""What a description of another library's model may say, and nothing else: sizes, switches and names of known things.

A blueprint or a config.json comes with a folder from anywhere. The libraries read much out of one that a model is not:
addresses to fetch from, folders to open, code to run, kernels to load. Here each is rebuilt from a list of what its
library's own class declares; what else it says is left out, and what would reach beyond it is refused.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from mmfm.config import UserError, require

NAME = re.compile(r"[\w.+\- ]{0,100}")  # no address and no path: neither : nor / nor \
TOLD = ("_name_or_path", "architectures", "id2label", "label2id", "task_specific_params", "prefix", "tokenizer_class")
REACH = ("quantization_config", "use_pretrained_backbone", "transformers_weights", "backbone_kwargs", "checkpoint_path")
REACH += ("auto_map", "custom_pipelines", "trust_remote_code", "model_args")
DEEPEST = 8
# What classes no longer declare but still read, of the configurations of older versions.
OLDER = {"output_attentions", "torch_dtype", "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct"}
OLDER |= {"global_rope_theta", "local_rope_theta", "rope_local_base_freq", "original_max_position_embeddings"}
TIMM = ("name", "kwargs", "pretrained_cfg", "unread")
TIMM_CFG = ("architecture", "input_size", "fixed_input_size", "min_input_size", "mean", "std", "interpolation")
TIMM_CFG += ("crop_pct", "crop_mode", "pool_size", "first_conv", "classifier")
LOADING = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only"}
OPEN_CLIP = ("embed_dim", "quick_gelu", "tower", "resized", "pooled", "unread")
HUB_OPEN_CLIP = ("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "timm_model_pretrained")
TORCHAUDIO = ("model", "params", "normalize", "unread")


def require_values(tree: Any, where: str, depth: int = 0) -> None:
    """Numbers, switches and names, in lists and objects. UserError: an address, a path or anything else."""
    require(depth < DEEPEST, f"{where} is nested deeper than a model's description is; do not trust it")
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            require_values(str(name), where, depth + 1)
            require_values(value, where, depth + 1)
    elif isinstance(tree, list | tuple):
        for value in tree:
            require_values(value, where, depth + 1)
    elif isinstance(tree, str):
        told = f"{where} says {tree[:60]!r}, where a model's description has names, and no file or address"
        require(NAME.fullmatch(tree) is not None, f"{told}; do not trust it")
    else:
        known = tree is None or isinstance(tree, bool | int | float)
        require(known, f"{where} holds a {type(tree).__name__}, which no model's description does; do not trust it")


def require_keys(tree: Any, known: tuple[str, ...], where: str) -> dict[str, Any]:
    """An object that says only what is known. UserError names the first other key."""
    require(isinstance(tree, Mapping), f"{where} should be a JSON object; do not trust it")
    extra = sorted(set(map(str, tree)) - set(known))
    require(not extra, f"{where} says {extra[:1]}, which is none of {', '.join(known)}; do not trust it")
    require_values(tree, where)
    return dict(tree)


def hf_config(tree: Mapping[str, Any], where: str) -> Any:
    """transformers' own configuration of this kind, of what its class declares; parts within it likewise.

    Left out is what describes labels and files. UserError: a kind that transformers does not have, or a reach beyond.
    """
    from transformers import AutoConfig

    kind = str(tree.get("model_type", ""))
    try:
        return AutoConfig.for_model(kind, **_declared(tree, _class_of(kind, where), where))
    except UserError:
        raise
    except Exception as why:  # each configuration checks itself, with errors of its own
        told = " ".join(f"{type(why).__name__}: {why}".split())[:240]
        raise UserError(f"{where}: transformers cannot read this configuration of {kind!r} ({told})") from None


def _class_of(kind: str, where: str) -> Any:
    from transformers import CONFIG_MAPPING

    told = f"{where}: transformers has no model {kind[:60]!r} of its own, and code that a folder brings is not run here"
    require(kind in CONFIG_MAPPING, f"{told}; give a model of a kind that transformers has")
    return CONFIG_MAPPING[kind]


def _declared(tree: Mapping[str, Any], cls: Any, where: str) -> dict[str, Any]:
    known = _known(cls)
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if name in REACH:
            require(not value or name not in known | {"quantization_config"}, _reach(where, name))
        elif name in cls.sub_configs and isinstance(value, Mapping):
            found[name] = _inner(value, cls.sub_configs[name], where)
        elif name in known and name not in TOLD:
            require_values(value, f"{where}: {name}")
            found[name] = value
    return found


def _known(cls: Any) -> set[str]:
    return {one.name for one in dataclasses.fields(cls)} | set(cls.attribute_map) | OLDER


def _inner(tree: Mapping[str, Any], cls: Any, where: str) -> dict[str, Any]:
    """With its model_type, by which a part of any kind is found again."""
    kind = str(tree.get("model_type", "") or cls.model_type)
    own = _class_of(kind, where) if kind else cls
    return _declared(tree, own, where) | ({"model_type": kind} if kind else {})


def _reach(where: str, name: str) -> str:
    return f"{where} sets {name}, which reads more than this model; remove it, or give the model without"


def described(config: Any) -> dict[str, Any]:
    """A configuration of transformers as the part of it that `hf_config` reads again."""
    tree = json.loads(config.to_json_string(use_diff=False))
    return _described(tree, type(config))


def _described(tree: dict[str, Any], cls: Any) -> dict[str, Any]:
    found = {"model_type": tree["model_type"]} if tree.get("model_type") else {}
    known = _known(cls)
    for name, value in tree.items():
        if name in cls.sub_configs and isinstance(value, Mapping):
            found[name] = _inner(value, cls.sub_configs[name], "the configuration")
        elif name in known and name not in TOLD:
            found[name] = value
    return found


def timm_shape(shape: Any, where: str = "a blueprint of timm") -> dict[str, Any]:
    """The architecture of a blueprint, whose name is one of timm's own."""
    import timm

    found = require_keys(shape, TIMM, where)
    name, kwargs = found.get("name"), found.get("kwargs", {})
    own = isinstance(name, str) and timm.is_model(name.split(".")[0])
    require(own, f"{where} names {str(name)[:60]!r}, which timm does not have; do not trust it")
    timm_arguments(kwargs, where)
    found["pretrained_cfg"] = require_keys(found.get("pretrained_cfg") or {}, TIMM_CFG, where)
    return found


def timm_arguments(kwargs: Any, where: str) -> dict[str, Any]:
    """Arguments of create_model, none of which reads another file."""
    require(isinstance(kwargs, Mapping), f"{where}: the arguments should be a JSON object; do not trust it")
    files = sorted(LOADING & set(kwargs))
    require(not files, f"{where} sets {files[:1]}, by which timm would read another file or address; do not trust it")
    require_values(kwargs, where)
    return dict(kwargs)


def open_clip_tower(cfg: Mapping[str, Any], modality: str, where: str) -> dict[str, Any]:
    """vision_cfg or text_cfg, of the fields that open_clip's class has; nothing in it is of a hub or a folder."""
    from mmfm.compat.open_clip import CLIPTextCfg, CLIPVisionCfg

    cls = CLIPVisionCfg if modality == "image" else CLIPTextCfg
    known = {one.name for one in dataclasses.fields(cls)}
    extra = sorted(set(map(str, cfg)) - known)
    require(not extra, f"{where} says {extra[:1]}, which open_clip's {cls.__name__} has not; do not trust it")
    found = {
        name: value for name, value in cfg.items() if name not in HUB_OPEN_CLIP and not name.endswith("_pretrained")
    }
    require(not cfg.get("hf_model_name"), _reach(where, "hf_model_name"))
    require_values(found, where)
    if found.get("timm_model_name") is not None:
        import timm

        own = timm.is_model(str(found["timm_model_name"]).split(".")[0])
        told = f"{where} names {found['timm_model_name']!r}, which timm does not have; do not trust it"
        require(own, told)
    return found
