"""Towers of other libraries behind transformers' face: what they do not save is there, and they read their own ids.

transformers builds models on the meta device, and leaves buffers that no file holds as they happen to lie in memory.
"""

import numpy as np
import pytest
import torch
import transformers
from exported import Exported, adopt, full_run
from PIL import Image
from toy_encoders import (
    BLOCKS,
    LAYERED,
    PICTURE,
    VOCABULARY,
    WORDS,
    hf_folder,
    timm_folder,
    wordpieces,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from mmfm.config import Tower, UserError
from mmfm.export import hf

TEXTS = ["the", "the cab. and a dog", "Bee [SEP] x", ""]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Exported:
    """A timm ViT with rotary positions, BERT, wav2vec 2.0: each keeps buffers out of its files."""
    hf.register()
    root = tmp_path_factory.mktemp("imported")
    args = {"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2}
    timm_folder(root / "image", "eva02_tiny_patch14_224", **args)
    bert = transformers.BertConfig(max_position_embeddings=40, **(WORDS | BLOCKS))
    hf_folder(root / "text", bert, wordpieces())
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    hf_folder(root / "audio", transformers.Wav2Vec2Config(**LAYERED), extractor)
    return adopt(root, full_run(**{name: Tower(source=str(root / name)) for name in ("image", "text", "audio")}))


def test_nothing_is_left_to_chance(made):
    """Every parameter and buffer after from_pretrained is the run's, and there are buffers that no file holds."""
    face = AutoModel.from_pretrained(made.folder)
    mine = dict(made.model.core.named_parameters()) | dict(made.model.core.named_buffers())
    theirs = dict(face.core.named_parameters()) | dict(face.core.named_buffers())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    unsaved = mine.keys() - made.model.core.state_dict().keys()
    assert {name.split(".")[1] for name in unsaved} >= {"image", "text"}


def test_features_are_those_of_the_run(made):
    """Pictures by the tower's own contract, texts by its own tokenizer, padded on either side, sounds in a batch."""
    face, processor = (auto.from_pretrained(made.folder) for auto in (AutoModel, AutoProcessor))
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(2)]
    waves = [0.1 * draw.standard_normal(n).astype(np.float32) for n in (4_000, 2_500)]
    with torch.no_grad():
        image = face.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
        sound = face.get_audio_features(**processor(audio=waves, return_tensors="pt")).pooler_output
        for side in ("left", "right"):
            ids = processor.tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
            text = face.get_text_features(**ids).pooler_output
            torch.testing.assert_close(text, made.model.encode_text(TEXTS), rtol=0, atol=1e-6)
    torch.testing.assert_close(image, made.model.encode_image(pictures), rtol=0, atol=1e-6)
    alone = torch.cat([made.model.encode_audio(torch.from_numpy(wave)[None]) for wave in waves])
    torch.testing.assert_close(sound, alone, rtol=0, atol=1e-5)


def test_the_folder_has_both_tokenizers(made):
    """One for reading, which cuts as the tower's contract says, one for writing; the wrong one is refused."""
    reading = AutoTokenizer.from_pretrained(made.folder)
    writing = AutoTokenizer.from_pretrained(made.folder, subfolder="writer")
    for text in (*TEXTS, "a " * 60):
        assert reading(text, truncation=True).input_ids == made.model.tokenizer.read(text)
    writer = AutoModelForCausalLM.from_pretrained(made.folder)
    picture = Image.new("RGB", (28, 28), "red")
    out = writer.generate(**AutoProcessor.from_pretrained(made.folder)(images=[picture], return_tensors="pt"))
    ours = made.model.generate("image>text", image=picture)
    assert writing.decode(out[0], skip_special_tokens=True) == ours
    with pytest.raises(UserError, match="not of the tokenizer for writing; it is in the folder's subfolder `writer`"):
        writer.generate(**reading(TEXTS[0], return_tensors="pt"))
    with pytest.raises(
        UserError, match="61 ids is longer than the 40 that this text tower reads; pass truncation=True"
    ):
        AutoModel.from_pretrained(made.folder).get_text_features(torch.full((1, 61), VOCABULARY["a"]))


def test_a_tower_that_fills_its_context_is_filled(tmp_path):
    """SigLIP's way: all places up to the context are padding that is seen, whatever the client's batch has."""
    hf.register()
    text = {"max_position_embeddings": 16, "projection_size": 16} | WORDS | BLOCKS
    config = transformers.SiglipConfig(text_config=text, vision_config=PICTURE)
    hf_folder(tmp_path / "text", config, wordpieces(16))
    made = adopt(tmp_path, full_run(text=Tower(source=str(tmp_path / "text"))))
    assert made.model.tokenizer.reader.words.fill
    face, reading = AutoModel.from_pretrained(made.folder), AutoTokenizer.from_pretrained(made.folder)
    with torch.no_grad():
        for padding in ({"padding": True}, {"padding": "max_length"}):
            ids = reading(TEXTS, truncation=True, return_tensors="pt", **padding)
            text = face.get_text_features(**ids).pooler_output
            torch.testing.assert_close(text, made.model.encode_text(TEXTS), rtol=0, atol=1e-6)
