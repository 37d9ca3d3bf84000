"""`mmfm show`: the first batch as a page, which is what training is given, and says who takes what."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from toys import toy_config

from mmfm.__main__ import main
from mmfm.config import Augment, Contrastive, Data, Generative, Run, Source
from mmfm.config.serialization import to_json
from mmfm.data.stream import TrainStream
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.report.show import show


@pytest.fixture
def run(tmp_path, write_shard, encode_image, encode_audio, sine) -> Run:
    pixels = np.full((8, 16), 100, np.uint8)
    write_shard(tmp_path / "i.tar", {f"i{n}": {"png": encode_image(pixels), "txt": b"a <b>"} for n in range(4)})
    write_shard(tmp_path / "a.tar", {f"a{n}": {"wav": encode_audio(sine(300, 0.1)), "txt": b"tone"} for n in range(4)})
    sources = tuple(Source(shards=str(tmp_path / f"{m[0]}.tar"), modalities=(m, "text")) for m in ("image", "audio"))
    return Run(
        name="shown",
        out=str(tmp_path),
        model=toy_config(),
        data=Data(train=sources, batch_size=8, augment=Augment(target_token_dropout=0.5)),
        contrastive=(Contrastive(pair=("image", "text")),),
        generative=(Generative(task="audio>text"), Generative(task="text~", sample_fraction=0.5)),
    )


def test_the_page_shows_the_first_batch(run, tmp_path):
    """Pictures and sounds as they were read where nothing changes them, tokens with masks, and counts."""
    text = show(run, str(tmp_path / "show.html")).read_text("utf-8")
    images = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    sizes = [np.asarray(Image.open(io.BytesIO(data))).shape for data in images]
    assert sizes.count((8, 16)) == 4 and (np.asarray(Image.open(io.BytesIO(images[sizes.index((8, 16))]))) == 100).all()
    waves = [base64.b64decode(found) for found in re.findall(r"data:audio/wav;base64,([^\"]+)", text)]
    assert [len(soundfile.read(io.BytesIO(data))[0]) for data in waves] == [1_600] * 4
    assert "image-text: 4 of 8 samples" in text and "audio&gt;text: 4 of 8 samples" in text
    assert "a &lt;b&gt;" in text and "<b>a" not in text and 'class="masked"' in text
    batch = TrainStream(run, load_tokenizer("bytes").limited(run), rank=0, world=1).plan[0].batch
    assert [key for key in re.findall(r"<h3>(\w+)</h3>", text)] == list(batch.keys)


def test_the_command(run, tmp_path, capsys):
    (path := tmp_path / "run.json").write_text(to_json(run))
    out = tmp_path / "page.html"
    assert main(["show", str(path), "--html", str(out), "--samples", "2"]) == 0
    assert Path(capsys.readouterr().out.strip()) == out and out.read_text("utf-8").count('class="sample"') == 2
    assert main(["show", str(path), "--samples", "0"]) == 2
    path.write_text(to_json(replace(run, data=Data())))
    assert main(["show", str(path)]) == 2 and "no training data" in capsys.readouterr().err
