"""A text tower of open_clip behind transformers' face: CLIP's vocabulary is large, and so this is not quick."""

import pytest
import torch
from exported import adopt, full_run
from toy_encoders import open_clip_folder
from transformers import AutoModel, AutoTokenizer

from mmfm.config import Tower
from mmfm.export import hf


def test_a_text_tower_of_open_clip_reads_as_ever(tmp_path):
    """CLIP's own merges, lower case and end mark; and its causal mask, a buffer that no file holds."""
    hf.register()
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49_408, "width": 16, "heads": 2, "layers": 1},
    }
    open_clip_folder(tmp_path / "clip", config)
    towers = {name: Tower(source=str(tmp_path / "clip")) for name in ("image", "text")}
    made = adopt(tmp_path, full_run(**towers, audio=None))
    reading, texts = AutoTokenizer.from_pretrained(made.folder), ["A photo of a CAT!", "it's 3 naïve dogs " * 5, ""]
    for text in texts:
        assert reading(text, truncation=True).input_ids == made.model.tokenizer.read(text)
    face = AutoModel.from_pretrained(made.folder)
    mask = "towers.text.encoder.trunk.attn_mask"
    assert mask not in made.model.core.state_dict()
    assert torch.equal(face.core.get_buffer(mask), made.model.core.get_buffer(mask))
    with torch.no_grad():
        ids = reading(texts, truncation=True, padding=True, return_tensors="pt")
        found = face.get_text_features(**ids).pooler_output
    with pytest.warns(UserWarning, match="only the beginning of a long text is read"):
        expected = made.model.encode_text(texts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
