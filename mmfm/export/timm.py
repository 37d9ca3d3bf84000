"""Image paths for timm: a folder that timm loads by itself, and a name under which it builds the whole path.

timm.create_model("local-dir:OUT", pretrained=True)     of `mmfm export --to timm`: the tower alone, without mmfm
mmfm.export.timm.register()
timm.create_model("mmfm_image", run="runs/NAME", num_classes=10)     tower, connector, trunk and head
"""

from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from mmfm import config
from mmfm.compat.timm import register_entry
from mmfm.config import UserError, Vit, require
from mmfm.export.folder import write_json
from mmfm.export.graphs import only
from mmfm.export.open_source import open_model
from mmfm.models.imported import ImportedTower
from mmfm.models.mappings import Foreign, give_back, shapes_of
from mmfm.models.model import UnifiedModel
from mmfm.preprocessing.validation import check_scaled

NAME = "mmfm_image"
BASES = {1e-6: "vit_tiny_patch16_224", 1e-5: "vit_base_patch16_clip_224"}  # timm's, by the epsilon of their norms
CROPS = {"stretch": "squash", "crop": "center", "shortest": "center"}
TOLERANCE = 1e-5


class ImagePath(nn.Module):
    """A unified model's way from pictures, as timm's models are used. Pixels are in -1..1 (mean and std of 0.5).

    global_pool: "token", the unit embedding, of `head_hidden_size` embed_dim; "avg", the mean of the trunk's states of
    the picture's tokens, and "", all of them, of `num_features`. num_classes of 0: no classifier.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]

    def __init__(
        self,
        core: UnifiedModel,
        num_classes: int = 0,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        *,
        pixels: config.ImagePreprocess,
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.core, self.num_features = only(core, "image"), core.trunk.width
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        pool = self.global_pool if global_pool is None else global_pool
        require(pool in ("token", "avg", ""), f"{NAME}: global_pool={pool!r} is none of 'token', 'avg' and ''")
        self.num_classes, self.global_pool = num_classes, pool
        self.head_hidden_size = self.core.embed_dim if pool == "token" else self.num_features
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.fc.to(self.core.device, self.core.dtype)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch time width"]:
        """The trunk's states: of the picture's tokens, and last of the pool token."""
        tower, x = self.core.towers["image"], check_scaled(x, self.pixels, self.pixels.channels).to(self.core.dtype)
        keep = torch.ones(x.shape[0], 1, dtype=torch.bool, device=x.device)
        tokens = tower(x, keep) if isinstance(tower, ImportedTower) else tower(x)
        return self.core.trunk([self.core.enter("image", tokens)])[0]

    def forward_head(self, x: Float[Tensor, "batch time width"], pre_logits: bool = False) -> Tensor:
        if self.global_pool == "token":
            x = self.core.head("image", x)
        elif self.global_pool == "avg":
            x = x[:, :-1].mean(1)
        return x if pre_logits else self.fc(self.head_drop(x))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Tensor:
        return self.forward_head(self.forward_features(x))


def mmfm_image(pretrained: bool = True, run: str = "", **options: Any) -> ImagePath:
    """timm's entry point. `run`: the folder of a run, a checkpoint or a bundle, whose weights are always taken."""
    require(bool(run), f'say which model: timm.create_model("{NAME}", run="runs/NAME")')
    model = open_model(run)
    if "image" not in model.modalities:
        raise UserError(f"{run} has no image tower; it reads {', '.join(model.modalities)}")
    assert model.config.image is not None
    pixels = model.config.image.pixels
    wanted = options.get("in_chans", pixels.channels)
    require(wanted == pixels.channels, f"{run} reads pictures of {pixels.channels} channels, not in_chans={wanted}")
    chosen = {name: options[name] for name in ("num_classes", "global_pool", "drop_rate") if name in options}
    made = ImagePath(model.core, **chosen, pixels=pixels)
    made.pretrained_cfg = made.default_cfg = {
        "architecture": NAME,
        "num_classes": made.num_classes,
        "classifier": "fc",
        **seen(pixels, (0.5,)),
    }
    return made


def register() -> None:
    """From now on `timm.create_model("mmfm_image", ...)` is known."""
    register_entry(mmfm_image)


def seen(pixels: config.ImagePreprocess, mean: tuple[float, ...], std: tuple[float, ...] = (0.5,)) -> dict[str, Any]:
    """timm's words for what a model expects of a picture."""
    each = pixels.channels
    return {
        "input_size": [each, pixels.height_px, pixels.width_px],
        "fixed_input_size": True,
        "interpolation": pixels.interpolation,
        "crop_pct": pixels.crop_pct,
        "crop_mode": CROPS[pixels.resize_mode],
        "mean": list(mean if len(mean) == each else mean * each),
        "std": list(std if len(std) == each else std * each),
    }


def write(vit: Vit, tower: nn.Module, folder: Path) -> dict[str, Any]:
    """A tower of our own as timm's `VisionTransformer`. UserError where timm has no such one, or it differs."""
    name, arguments = timm_arguments(vit)
    theirs: Any = timm.create_model(name, pretrained=False, **arguments).eval()
    source = Foreign(library="timm", architecture={"name": name, "kwargs": arguments}, modality="image")
    state = give_back(source, vit, {key: value.cpu() for key, value in tower.state_dict().items()}, shapes_of(theirs))
    theirs.load_state_dict(state, strict=True)
    x = torch.linspace(-1, 1, vit.channels * vit.height_px * vit.width_px)
    x = x.view(1, vit.channels, vit.height_px, vit.width_px)
    mean, std = (torch.tensor(values)[:, None, None] for values in (vit.mean, vit.std))
    with torch.no_grad():
        difference = (theirs.forward_features((x / 2 + 0.5 - mean) / std) - tower(x).x).abs().max().item()
    require(difference <= TOLERANCE, f"timm's ViT differs by {difference:g} from the tower, above {TOLERANCE}")
    seen_as = seen(vit.pixels, vit.mean, vit.std) | {"num_classes": 0, "classifier": "head"}
    about = {"architecture": name, "num_classes": 0, "model_args": arguments, "pretrained_cfg": seen_as}
    write_json(folder / "config.json", about)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / "model.safetensors")
    return {"difference": difference}


def timm_arguments(vit: Vit) -> tuple[str, dict[str, Any]]:
    """The model of timm that is nearest, and all that is told it beside."""
    require(vit.stem == "patch", f"timm's ViT has a stem of patches; this one's is {vit.stem}: take --to onnx")
    require(
        vit.eps in BASES,
        f"timm's ViT has norms of epsilon {', '.join(map(str, BASES))}, not {vit.eps:g}: take --to onnx",
    )
    return BASES[vit.eps], {
        "img_size": [vit.height_px, vit.width_px],
        "patch_size": vit.patch_px,
        "in_chans": vit.channels,
        "embed_dim": vit.width,
        "depth": vit.depth,
        "num_heads": vit.heads,
        "mlp_ratio": (vit.hidden or 4 * vit.width) / vit.width,
        "init_values": vit.layer_scale or None,
        "class_token": vit.prefix > 0,
        "reg_tokens": max(0, vit.prefix - 1),
        "no_embed_class": True,
        "pre_norm": vit.norm_pre,
        "final_norm": vit.norm_post,
        "fc_norm": False,
        "act_layer": vit.activation,
        "global_pool": "token" if vit.prefix else "avg",
        "num_classes": 0,
    }
