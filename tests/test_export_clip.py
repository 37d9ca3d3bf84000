"""There and back: open_clip's CLIP as our two towers, and these as open_clip's CLIP again, the same to the last bit."""

import open_clip
import pytest
import torch
from shared_exports import pictures

from mmfm.config import ImagePreprocess, TokenizerSpec, UserError
from mmfm.export.clip import HEADS, write_clip
from mmfm.models.mappings import Converted, Foreign, convert

VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
KINDS = {
    "CLIP": {},
    "QuickGELU": {"quick_gelu": True},
    "sigmoid loss": {"init_logit_bias": -10.0},
    "without its first norm": {"vision_cfg": {**VISION, "no_ln_pre": True}},
}
PIXELS = ImagePreprocess(height_px=32, width_px=32, resize_mode="crop", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def theirs(kind: str) -> tuple[dict, torch.nn.Module]:
    """A CLIP of open_clip with every parameter away from its start."""
    cfg = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT} | KINDS[kind]
    torch.manual_seed(0)
    model = open_clip.CLIP(**cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return cfg, model


def ours(cfg: dict, model: torch.nn.Module) -> tuple[Converted, Converted]:
    state, words = model.state_dict(), TokenizerSpec(sha256="0" * 64, context=12, begin=(49406,), end=(49407,))
    visual = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    rest = {name: value for name, value in state.items() if not name.startswith(("visual.", "logit"))}
    image = Foreign(library="open_clip", architecture=cfg, modality="image", contract=PIXELS)
    text = Foreign(library="open_clip", architecture=cfg, modality="text", contract=words)
    return convert(image, visual), convert(text, rest)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind, tmp_path):
    """open_clip -> our towers -> open_clip's folder -> open_clip: embeddings of pictures and texts within 1e-6."""
    cfg, model = theirs(kind)
    write_clip(*ours(cfg, model), model.state_dict(), tmp_path)
    again, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    texts = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a photo", "of a red and rather large square"])
    x = torch.stack([transform(picture) for picture in pictures(3, side=40)])
    with torch.no_grad():
        torch.testing.assert_close(again.eval().encode_image(x), model.encode_image(x), rtol=0, atol=1e-6)
        torch.testing.assert_close(again.encode_text(texts), model.encode_text(texts), rtol=0, atol=1e-6)
    assert torch.equal(again.logit_scale, model.logit_scale)
    assert (again.logit_bias is None) == (model.logit_bias is None)
    assert tuple(again.visual.preprocess_cfg["mean"]) == PIXELS.mean and texts.shape == (2, 12)


def test_heads_that_do_not_fit_are_refused(tmp_path):
    """Missing, and of another width; nothing is written."""
    cfg, model = theirs("CLIP")
    towers, heads = ours(cfg, model), {name: model.state_dict()[name] for name in HEADS}
    with pytest.raises(UserError, match=r"no text_projection given; a CLIP joins its towers by"):
        write_clip(*towers, {name: heads[name] for name in HEADS if name != "text_projection"}, tmp_path)
    with pytest.raises(UserError, match=r"text_projection has shape \(32, 9\), and \(32, 24\) in open_clip's CLIP"):
        write_clip(*towers, heads | {"text_projection": torch.zeros(32, 9)}, tmp_path)
    assert not list(tmp_path.iterdir())
