"""A unified model as open_clip loads one: a folder with open_clip's own files, and one hook for the class.

    mmfm.export.open_clip.register()
    model, _, transform = open_clip.create_model_and_transforms("local-dir:OUT")
    tokenizer = open_clip.get_tokenizer("local-dir:OUT")

open_clip chooses the class of a model by its `model_cfg`; the hook adds the choice of ours where this has the key
"mmfm". Everything else (weights, preprocessing, tokenizer, precision, device) is open_clip's own code.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from mmfm import config
from mmfm.compat.open_clip import choose_model_class, model_class
from mmfm.config import require
from mmfm.config.serialization import from_json, to_json
from mmfm.data.batch import Items, Tokens
from mmfm.export.folder import write_json
from mmfm.export.graphs import longest_text, words_of
from mmfm.export.tokenizer import write_tokenizer
from mmfm.inference.bundle.without_paths import unplaced
from mmfm.inference.interface import Interface
from mmfm.models.imported import ImportedTower
from mmfm.models.model import UnifiedModel, build
from mmfm.preprocessing.validation import check_ids, check_scaled

KEY = "mmfm"
CONTEXT = 256  # ids of a text, where nothing sets a limit: open_clip pads to a length and cuts there
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601, as Pillow has it
RESIZE = {"stretch": "squash", "crop": "shortest", "shortest": "shortest"}
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
CENTRAL = "open_clip has no crop_pct crop: it shows all of what the model saw {:g} of the sides of"


class OpenClip(nn.Module):
    """Images and texts of a unified model behind open_clip's protocol. `visual` and `text` are the ways in."""

    def __init__(self, run: config.Run, text_size: int, pad: int, biased: bool, context: int) -> None:
        super().__init__()
        self.core: UnifiedModel = build(run.model, text_size)
        self.words, self.pad, self.context_length, self.vocab_size = words_of(run.model), pad, context, pad + 1
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if biased else None
        pixels = _pixels(run.model)
        self.grey, self.pixels = pixels.channels == 1, pixels
        self.visual = Way(self._embed_pixels, (pixels.height_px, pixels.width_px))
        self.text = Way(self._embed_ids, None)

    def _embed_pixels(self, pixels: Tensor) -> Float[Tensor, "n d"]:
        """Pixels [n, 3, height, width] in -1..1."""
        pixels = check_scaled(pixels, self.pixels, 3)
        if self.grey:
            pixels = (pixels * pixels.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
        tower, keep = self.core.towers["image"], torch.ones(len(pixels), 1, dtype=torch.bool, device=pixels.device)
        pixels = pixels.to(self.core.dtype)
        return self._embed("image", tower(pixels, keep) if isinstance(tower, ImportedTower) else tower(pixels))

    def _embed_ids(self, ids: Int[Tensor, "n time"]) -> Float[Tensor, "n d"]:
        ids = check_ids(ids, self.vocab_size)
        keep = ids != self.pad
        filled = self.words is not None and self.words.fill
        keep = keep if filled else keep[:, : max(1, int(keep.sum(1).max()))]  # the tokenizer pads to one length
        ids = ids[:, : keep.shape[1]].where(keep, 0 if self.words is None else self.words.pad)
        keep = torch.ones_like(keep) if filled else keep
        rows = torch.arange(len(ids), device=ids.device)
        return self._embed("text", self.core.tokens("text", Items(x=ids, keep=keep, rows=rows)))

    def _embed(self, modality: str, tokens: Tokens) -> Float[Tensor, "n d"]:
        return self.core.head(modality, self.core.trunk([self.core.enter(modality, tokens)])[0])

    def encode_image(self, image: Tensor, normalize: bool = False) -> Float[Tensor, "n d"]:
        """Unit vectors in any case: the heads normalise."""
        return self.visual(image)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Float[Tensor, "n d"]:
        return self.text(text)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Both embeddings, None for what is not given, the inverse temperature, and the bias where there is one."""
        embeddings = (None if image is None else self.visual(image), None if text is None else self.text(text))
        bias = () if self.logit_bias is None else (self.logit_bias,)
        return (*embeddings, self.logit_scale.exp().clamp(max=100), *bias)


class Way(nn.Module):
    """A way into the model, without parameters of its own, that bears what open_clip notes on a tower."""

    def __init__(self, embed: Callable[[Tensor], Tensor], image_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.embed = embed
        if image_size is not None:
            self.image_size = image_size

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)


def _pixels(cfg: config.Model) -> config.ImagePreprocess:
    assert cfg.image is not None
    return cfg.image.pixels


def register() -> None:
    """From now on open_clip's loaders know folders of `write`. Others they load as before; twice is as once."""
    theirs = model_class()
    if not isinstance(theirs, Chooser):
        choose_model_class(Chooser(theirs))


class Chooser:
    """In place of open_clip's class: ours where the configuration is ours."""

    def __init__(self, theirs: type[nn.Module]) -> None:
        self.theirs, self.__name__ = theirs, theirs.__name__

    def __call__(self, **cfg: Any) -> nn.Module:
        ours = cfg.get(KEY)
        if ours is None:
            return self.theirs(**cfg)
        run = from_json(json.dumps(ours["run"]), "open_clip_config.json")
        rest = {name: ours[name] for name in ("text_size", "pad", "biased")}
        return OpenClip(run, context=cfg["text_cfg"]["context_length"], **rest)


def write(model: Interface, folder: Path) -> dict[str, Any]:
    """Fills `folder`; returns what export.json should say. UserError for a model without images and texts."""
    missing = [name for name in ("image", "text") if name not in model.modalities]
    require(not missing, f"open_clip's models read images and texts; this one has no {' and no '.join(missing)} tower")
    run, pair, words = public(model.run), _pair(model), words_of(model.config)
    limits = (model.tokenizer.longest or CONTEXT, longest_text(model.config))
    context = min(most for most in limits if most)  # so that open_clip cuts where `mmfm.load` does
    pad = write_tokenizer(model.tokenizer, words, context, folder)
    biased = any(item.name == pair and item.loss == "sigmoid" for item in model.run.contrastive)
    made = OpenClip(run, model.tokenizer.size, pad, biased, context)
    held = model.core.state_dict()
    state = {  # of the vocabulary only its first part, text: no codes are read here
        name: held[name.removeprefix("core.")][tuple(map(slice, value.shape))]
        for name, value in made.state_dict().items()
        if name.startswith("core.")
    }
    state["logit_scale"] = model.core.log_scales[pair].detach().reshape(())
    state |= {"logit_bias": model.core.biases[pair].detach().reshape(())} if biased else {}
    made.load_state_dict(state, strict=True)
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / WEIGHTS)
    ours = {"text_size": model.tokenizer.size, "pad": pad, "biased": biased, "run": json.loads(to_json(run))}
    write_json(folder / CONFIG, _config(run.model, context, ours))
    pixels = _pixels(model.config)
    notes = [CENTRAL.format(pixels.crop_pct)] if pixels.crop_pct < 1 else []
    return {"hook": "mmfm.export.open_clip.register()", "notes": notes}


def public(run: config.Run) -> config.Run:
    """What builds the part that reads images and texts, without where anything lay on this machine."""
    bare = {"image_codec": None, "audio_codec": None, "tokenizer": "bytes"}
    model = unplaced(run.model).reading(("image", "text"))
    return config.Run(name=run.name, model=dataclasses.replace(model, **bare))


def _pair(model: Interface) -> str:
    """The contrast of images and texts, either way round."""
    found = [item.name for item in model.run.contrastive if set(item.pair) == {"image", "text"}]
    require(bool(found), "this model was trained without contrast of image and text: open_clip could not compare them")
    return found[0]


def _config(cfg: config.Model, context: int, ours: dict[str, Any]) -> dict[str, Any]:
    """open_clip_config.json. The pixels that ours takes are in -1..1: each tower goes on from there itself."""
    pixels = _pixels(cfg)
    size = [pixels.height_px, pixels.width_px]
    vision = {"image_size": size}
    text = {"context_length": context, "vocab_size": ours["pad"] + 1, "hf_tokenizer_name": "tokenizer.json"}
    model = {"embed_dim": cfg.embed_dim, "custom_text": True, "vision_cfg": vision, "text_cfg": text, KEY: ours}
    half = [0.5, 0.5, 0.5]
    how = {"interpolation": pixels.interpolation, "resize_mode": RESIZE[pixels.resize_mode]}
    return {"model_cfg": model, "preprocess_cfg": {"size": size, "mean": half, "std": half, **how}}
