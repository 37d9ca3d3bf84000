"""Both towers of open_clip's models, each built alone by open_clip's own builders.

architecture: {"embed_dim", "quick_gelu", "tower": vision_cfg or text_cfg}. Tokens are the last layer's, after the final
norm where it stands before the pool; with "pooled" there is one, the embedding that the tower itself gives. A text
tower that is transformers' becomes a blueprint of transformers.
"""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmfm.compat.open_clip import (
    CLIPTextCfg,
    CLIPVisionCfg,
    ModifiedResNet,
    PreprocessCfg,
    TimmModel,
    build_text_tower,
    build_vision_tower,
    convert_to_custom_text_state_dict,
    embedded,
    get_model_preprocess_cfg,
    image_transform_v2,
    merge_preprocess_dict,
)
from mmfm.config import EncoderSpec, ImagePreprocess, Tower, UserError, require
from mmfm.data.batch import Tokens
from mmfm.pretrained import architecture_schema, clip_tokenizer, from_hf, from_timm
from mmfm.pretrained.encoder import (
    Encoder,
    Resolved,
    Weights,
    all_real,
    architecture,
    finish,
    flat,
    one_token,
    prefixed,
    scalars_of,
)
from mmfm.pretrained.preprocessing_parity import settled, variants
from mmfm.pretrained.source import Source, fetching, read_json, require_safetensors

FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
HALVES = {"image": "visual.", "text": "text."}


class OpenClipImages(Encoder):
    def forward(self, x: Float[Tensor, "batch channels height width"], keep: Tensor | None = None) -> Tokens:
        trunk: Any = self.trunk
        if architecture(self.blueprint).get("pooled"):
            return all_real(embedding(trunk(x)))
        if isinstance(trunk, TimmModel):
            return all_real(from_timm.features(trunk.trunk, x))
        if isinstance(trunk, ModifiedResNet):
            places = trunk.forward_intermediates(x, 1, intermediates_only=True)["image_intermediates"][-1]
            return all_real(flat(places, places.shape[1]))
        before = trunk.attn_pool is None and not trunk.final_ln_after_pool
        out = trunk.forward_intermediates(
            x,
            1,
            normalize_intermediates=before,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return all_real(torch.cat([out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]], 1))


class OpenClipText(Encoder):
    def forward(self, x: Int[Tensor, "batch time"], keep: Bool[Tensor, "batch time"] | None = None) -> Tokens:
        """A tower with a class token has it at the end of its whole context, behind the padding; and open_clip's own
        embedding is of a whole context."""
        assert keep is not None and self.blueprint.words is not None
        trunk: Any = self.trunk
        ids, pooled = x.masked_fill(~keep, self.blueprint.words.pad), architecture(self.blueprint).get("pooled")
        if pooled or trunk.cls_emb is not None:
            more = self.blueprint.words.context - ids.shape[1]
            ids, keep = F.pad(ids, (0, more), value=self.blueprint.words.pad), F.pad(keep, (0, more))
        if pooled:
            return all_real(embedding(trunk(ids)))
        x, mask = embedded(trunk, ids)
        if mask is not None and mask.ndim == 2:  # of the whole context; beside a class token open_clip has cut it
            mask = mask[: x.shape[1], : x.shape[1]]
        tokens = trunk.ln_final(trunk.transformer(x, attn_mask=mask))
        return Tokens(tokens, keep if trunk.cls_emb is None else F.pad(keep, (0, 1), value=True))


def embedding(out: Tensor | tuple[Tensor, ...]) -> Float[Tensor, "batch 1 width"]:
    """What a tower gives of each input; those of CoCa give their tokens too."""
    return one_token(out[0] if isinstance(out, tuple) else out, "this tower of open_clip")


def resolve(source: Source, tower: Tower, modality: str) -> Resolved:
    require(modality in HALVES, f"{tower.source} encodes images and texts; open_clip has no {modality} encoders")
    name, tag = _name(source)
    if source.folder is not None and tower.weights == "pretrained":
        require_safetensors(source.folder)
    with fetching(tower.source, f"the repository {source.name} (open_clip_config.json)", str(constants.HF_HUB_CACHE)):
        cfg = open_clip.get_model_config(name)
    require(cfg is not None, f"open_clip has no model {name!r}; open_clip.list_models() lists those it has")
    assert cfg is not None
    kind = "vision_cfg" if modality == "image" else "text_cfg"
    told = f"{tower.source}: its configuration has no {kind} and embed_dim; write it again"
    require(isinstance(cfg.get(kind), dict) and "embed_dim" in cfg, told)
    architecture_schema.open_clip_tower(_unhubbed({"tower": cfg["vision_cfg"]})["tower"], "image", tower.source)
    size = _size(cfg["vision_cfg"], tower) if modality == "image" and (tower.height_px or tower.width_px) else None
    weights, preprocess = None, {}
    if tower.weights == "pretrained" and source.folder is not None:
        weights = _of_folder(source.folder)
    elif tower.weights == "pretrained":
        weights, preprocess = _pretrained(name, tag, cfg, tower)
    half = None if weights is None else _half(weights, HALVES[modality])
    if modality == "text" and cfg[kind].get("hf_model_name"):
        told = "has a text tower of transformers, whose pool is open_clip's: it cannot be had as a whole"
        require(tower.pool != "source", f"{tower.source} {told}; say --modality image or text")
        return _hf_text(cfg[kind], half, tower, source)
    own = _unhubbed({"tower": cfg[kind]})["tower"]
    shape = {"embed_dim": cfg["embed_dim"], "quick_gelu": cfg.get("quick_gelu", False), "tower": own}
    if size is not None:
        half = None if half is None else _resized(half, shape, size)
        shape |= {"tower": own | {"image_size": size}, "resized": True}
    shape |= {"pooled": True} if tower.pool == "source" else {}
    contract: dict[str, Any] = {}
    tokenizer = None
    if modality == "image":
        contract["pixels"] = pixels_of(preprocess or _preprocess(name, tag, source), shape, tower)
    else:
        contract["words"], tokenizer = clip_tokenizer.words_of(name, cfg[kind])
    draft = EncoderSpec(
        library="open_clip", modality=cast(Any, modality), architecture=json.dumps(shape), width=1, **contract
    )
    made = finish(draft, build, None if half is None else prefixed(half), tokenizer)
    return replace(made, scalars=scalars_of(weights or {}) if tower.pool == "source" else {})


def build(blueprint: EncoderSpec) -> Encoder:
    where = "a blueprint of open_clip"
    shape = architecture_schema.require_keys(_unhubbed(architecture(blueprint)), architecture_schema.OPEN_CLIP, where)
    cfg = architecture_schema.open_clip_tower(shape["tower"], blueprint.modality, where)
    if blueprint.modality == "image":
        trunk = build_vision_tower(shape["embed_dim"], _vision(cfg), shape["quick_gelu"])
        if shape.get("resized") and isinstance(trunk, TimmModel):
            trunk.set_input_size(tuple(cfg["image_size"]))
        return OpenClipImages(blueprint, trunk)
    text = build_text_tower(shape["embed_dim"], CLIPTextCfg(**cfg), shape["quick_gelu"])
    return OpenClipText(blueprint, cast(nn.Module, text))


def _unhubbed(shape: dict[str, Any]) -> dict[str, Any]:
    """Without what names a tokenizer, which lies beside the weights, and settings of training."""
    beside = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
    own = {name: value for name, value in dict(shape["tower"]).items() if name not in beside}
    known = ("embed_dim", "quick_gelu", "resized", "pooled", "unread")
    extra = {name: value for name, value in shape.items() if name not in (*known, "tower")}
    return {name: shape[name] for name in known if name in shape} | {"tower": own} | extra


def _name(source: Source) -> tuple[str, str | None]:
    if source.folder is not None:
        return f"local-dir:{source.folder}", None
    if source.name.startswith("hf-hub:"):
        return source.name, None
    name, _, tag = source.name.partition("/")
    return name, tag


def _size(cfg: dict[str, Any], tower: Tower) -> list[int]:
    own = cfg.get("image_size", 224)
    height, width = own if isinstance(own, (list, tuple)) else (own, own)
    return [tower.height_px or height, tower.width_px or width]


def _pretrained(name: str, tag: str | None, cfg: dict[str, Any], tower: Tower) -> tuple[Weights, dict[str, Any]]:
    what = name if tag is None else _repository(name, tag, bool(cfg.get("quick_gelu", False)))
    with fetching(tower.source, f"the repository {what} (its safetensors)", str(constants.HF_HUB_CACHE)):
        model = open_clip.create_model(
            name,
            tag,
            precision="fp32",
            pretrained_image=False,
            pretrained_text=False,
            require_pretrained=True,
        )
    weights = cast(Weights, convert_to_custom_text_state_dict(model.state_dict()))
    return weights, get_model_preprocess_cfg(model)


def _of_folder(folder: Path) -> Weights:
    """The tensors of its file alone: open_clip would also build, and fetch, what its configuration names."""
    order = [*FILES, *sorted(path.name for path in folder.glob("*.safetensors"))]
    file = next(folder / name for name in order if (folder / name).is_file())
    try:
        return cast(Weights, convert_to_custom_text_state_dict(load_file(file)))
    except (SafetensorError, OSError) as why:
        raise UserError(f"{file} cannot be read ({why}); copy the whole folder again") from None


def _resized(half: Weights, shape: dict[str, Any], size: list[int]) -> Weights:
    """The positions of another size of picture. open_clip itself leaves a table of as many places as it is."""
    cfg = shape["tower"]
    if cfg.get("timm_model_name"):
        trunk: Any = build_vision_tower(shape["embed_dim"], _vision(cfg), shape["quick_gelu"])
        trunk.load_state_dict(half)
        trunk.set_input_size(tuple(size))
        return trunk.state_dict()
    if "positional_embedding" not in half:
        return half
    own, patch = cfg.get("image_size", 224), cfg.get("patch_size", 16)
    (high, wide), (down, across) = (one if isinstance(one, (list, tuple)) else (one, one) for one in (own, patch))
    old, new = (high // down, wide // across), (size[0] // down, size[1] // across)
    table = half["positional_embedding"]
    extra = len(table) - old[0] * old[1]
    grid = table[extra:].float().unflatten(0, old).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)[0].flatten(1).T
    return half | {"positional_embedding": torch.cat([table[:extra], grid.to(table.dtype)])}


def _vision(cfg: dict[str, Any]) -> CLIPVisionCfg:
    offline: dict[str, Any] = cfg | {"timm_model_pretrained": False}
    return CLIPVisionCfg(**offline)


def _repository(name: str, tag: str, quick: bool) -> str:
    """Where weights of this tag are downloaded from; they must be there, and trained with the architecture's GELU."""
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    known = open_clip.get_pretrained_cfg(name, tag)
    require(bool(known), f"open_clip has no weights {tag!r} of {name}; write open_clip:{name}/TAG with a TAG of {tags}")
    trained = bool(known.get("quick_gelu", False))
    kind, other = ("QuickGELU", f"{name}-quickgelu") if trained else ("exact GELU", name.removesuffix("-quickgelu"))
    require(trained == quick, f"weights {tag} of {name} were trained with {kind}; write open_clip:{other}/{tag}")
    return str(known.get("hf_hub") or known.get("url", "").rpartition("/")[2]).rstrip("/")


def _half(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _preprocess(name: str, tag: str | None, source: Source) -> dict[str, Any]:
    """As create_model puts it together, for an architecture whose weights are not loaded."""
    known = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if source.folder is not None:
        known = read_json(source.folder / "open_clip_config.json").get("preprocess_cfg")
    return merge_preprocess_dict(asdict(PreprocessCfg()), known or {})


def pixels_of(preprocess: dict[str, Any], shape: dict[str, Any], tower: Tower) -> ImagePreprocess:
    how = preprocess.get("resize_mode", "shortest")
    require(
        how in ("shortest", "squash"), f"{tower.source} pads pictures to a square ({how}), which is not offered here"
    )
    size = shape["tower"].get("image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    pixels = ImagePreprocess(
        height_px=height,
        width_px=width,
        resizer="pillow",
        resize_mode="shortest" if how == "shortest" else "stretch",
        interpolation="bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(float(value) for value in preprocess["mean"]),
        std=tuple(float(value) for value in preprocess["std"]),
    )
    known = {field.name for field in fields(PreprocessCfg)}
    told: dict[str, Any] = {name: value for name, value in preprocess.items() if name in known} | {
        "size": (height, width)
    }
    theirs = cast(Any, image_transform_v2(PreprocessCfg(**told), is_train=False))
    return settled(tower.source, variants(pixels), theirs, "open_clip")


def _hf_text(cfg: dict[str, Any], half: Weights | None, tower: Tower, source: Source) -> Resolved:
    """The transformers model inside: pooler and projection, which its tokens do not reach, stay behind."""
    name = str(cfg["hf_model_name"])
    require(
        source.folder is None,
        f"{tower.source} leaves its text tower to the repository {name[:80]!r}, to which no folder may lead; give "
        "open_clip:NAME/TAG, or the folder's image tower alone",
    )
    own = clip_tokenizer.REPOSITORY.fullmatch(name) is not None and not Path(name).exists()
    require(own, f"{tower.source} names {name[:80]!r}, which is no repository; do not trust it")
    tokenizer = cfg.get("hf_tokenizer_name") or name
    with fetching(tower.source, f"the repository {name} (config.json)", str(constants.HF_HUB_CACHE)):
        found = from_hf.AutoConfig.from_pretrained(name, trust_remote_code=False)
        config = architecture_schema.hf_config(found.to_dict(), tower.source)
    weights = None if half is None else _half(half, "transformer.")
    try:
        return from_hf.resolve_parts(config, weights, str(source.folder or tokenizer), tower, "text")
    except UserError as why:
        raise UserError(f"{tower.source}: {why}") from None
