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

# Every way to a network ends the process at once, so that nobody can catch it.
ALONE = """
import json, os, socket, sys
def refuse(*_, **__):
    os._exit(9)
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
import numpy as np, torch
torch.set_num_threads(1)
import mmfm, mmfm.hf
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

bundle, folder, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
picture, wave = Image.open("x.png"), np.load("x.npy")
given = {"image": [picture], "audio": [wave], "text": texts}
model = mmfm.load(bundle, device="cpu")
made = {name: getattr(model, f"encode_{name}")(x) for name, x in given.items()}
parts = {name: mmfm.load_encoder(name, bundle).embed(x).detach() for name, x in given.items()}
mmfm.hf.register()
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


def adopted(where: Path) -> Exported:
    """Towers of timm and of transformers, from folders."""
    timm_folder(where / "image", "test_vit", img_size=32)
    bert = transformers.BertConfig(max_position_embeddings=40, **(WORDS | BLOCKS))
    hf_folder(where / "text", bert, wordpieces())
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    hf_folder(where / "audio", transformers.Wav2Vec2Config(**LAYERED), extractor)
    return adopt(where, full_run(**{name: Tower(source=str(where / name)) for name in ("image", "text", "audio")}))


def test_a_bundle_and_an_exported_folder_need_nothing_else(tmp_path: Path) -> None:
    made, away, draw = adopted(tmp_path / "here"), tmp_path / "away", np.random.default_rng(0)
    bundle = mmfm.save_bundle(made.model, tmp_path / "here" / "bundle")
    picture, wave = Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)), draw.standard_normal(4_000)
    away.mkdir()
    picture.save(away / "x.png")
    np.save(away / "x.npy", (0.1 * wave).astype(np.float32))
    wave = torch.from_numpy(np.load(away / "x.npy"))
    given = {"image": [picture], "audio": [wave], "text": TEXTS}
    expected = {name: getattr(made.model, f"encode_{name}")(x).numpy() for name, x in given.items()}
    written = made.model.generate("image>text", image=picture, max_tokens=5)
    for folder in (bundle, made.folder):
        shutil.move(folder, away / folder.name)
    shutil.rmtree(tmp_path / "here")
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", ALONE, str(away / "bundle"), str(away / "hf"), json.dumps(TEXTS)]
    done = subprocess.run(words, cwd=away, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    *every, said = json.loads(done.stdout.splitlines()[-1])
    assert said == written
    for found in every:
        for name, vectors in expected.items():
            np.testing.assert_allclose(np.array(found[name]), vectors, rtol=0, atol=1e-5, err_msg=name)
