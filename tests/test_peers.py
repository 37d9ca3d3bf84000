"""Imported whole models as baselines: scored, reported, embedded and compared as runs are; and trained on."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import soundfile
import torch
import torch.nn.functional as F
import transformers as hf
from exported import export, full_run
from PIL import Image
from torch import Tensor
from toy_encoders import moved
from toy_wholes import (
    CLOSE,
    NAMES,
    RATE_HZ,
    SENTENCES,
    TEMPLATES,
    Made,
    clap,
    clip,
    clips,
    louder,
    photographs,
    pictures,
    shards,
)

import mmfm
from mmfm.__main__ import main
from mmfm.config import Contrastive, Data, Eval, Optim, Run, Source, UserError
from mmfm.export import open_clip as exported_open_clip
from mmfm.export.importer import import_source
from mmfm.inference.interface import Interface
from mmfm.models.model import build
from mmfm.report.run_record import read_record
from mmfm.report.scored_runs import read_contenders
from mmfm.training.fit import train
from mmfm.training.initialize import begin, prepare

HERE = ["--device", "cpu", "--workers", "0"]
ESC50 = str(Path(__file__).parent.parent / "configs" / "suites" / "esc50.py")


@torch.no_grad()
def chosen(made: Made, given: dict[str, Tensor], templates: tuple[str, ...] = TEMPLATES) -> list[int]:
    """The nearest class of each by transformers alone: the mean of its prompts, each and together of length one."""
    model: Any
    model, tokenizer, _ = made
    heads = []
    for name in NAMES:
        read = tokenizer([template.replace("{}", name) for template in templates], padding=True, return_tensors="pt")
        x = model.get_text_features(read["input_ids"], attention_mask=read["attention_mask"]).pooler_output
        heads.append(F.normalize(F.normalize(x, dim=-1).mean(0), dim=-1))
    kind = "audio" if "input_features" in given else "image"
    x = getattr(model, f"get_{kind}_features")(**given).pooler_output
    return (F.normalize(x, dim=-1) @ torch.stack(heads).T).argmax(1).tolist()


def score(results: Path, task: str, metric: str) -> float:
    rows = {(row["task"], row["metric"]): row["value"] for row in json.loads(results.read_text())}
    return rows[task, metric]


def right(guesses: list[int]) -> float:
    assert len(set(guesses)) > 1, "all are one class, so that nothing is shown"
    return float(np.mean([guess == at % 3 for at, guess in enumerate(guesses)]))


def test_sounds_are_classified_as_transformers_does(tmp_path: Path) -> None:
    """A suite of the project asked of CLAP, in its data set's own layout."""
    made, files = louder(clap(tmp_path / "source"), tmp_path / "source"), clips(48)
    root, rows = tmp_path / "ESC-50", ["filename,fold,target,category"]
    for folder in ("meta", "audio"):
        (root / folder).mkdir(parents=True)
    for at, data in enumerate(files):
        (root / "audio" / f"{at}.wav").write_bytes(data)
        rows.append(f"{at}.wav,{at % 2 + 1},{at % 3},{NAMES[at % 3]}")
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    import_source(str(tmp_path / "source"), tmp_path / "peer")
    assert main(["eval", str(tmp_path / "peer"), ESC50, "--root", str(root), *HERE]) == 0
    waves = [soundfile.read(io.BytesIO(file), dtype="float32")[0] for file in files]
    given = made[2](waves, sampling_rate=RATE_HZ, return_tensors="pt")
    expected = right(chosen(made, dict(given), ("This is a sound of {}.",)))
    assert score(tmp_path / "peer" / "results.esc50.json", "audio->text", "acc@1") == pytest.approx(expected)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a peer and a run of ours, both scored on the same shards."""
    root = tmp_path_factory.mktemp("scored")
    louder(clip(root / "source"), root / "source")
    data = shards(root / "data", photographs(), "png")
    assert main(["import", str(root / "source"), str(root / "peer")]) == 0
    export(root / "ours", replace(full_run(), name="ours", eval=Eval(bootstrap=100)))
    for folder in (root / "peer", root / "ours" / "run"):
        assert main(["eval", str(folder), "--data", str(data), *HERE]) == 0
    return root


def test_zero_shot_is_what_transformers_finds(scored: Path) -> None:
    """`mmfm eval BUNDLE --data FOLDER`: the share of right classes, with the folder's own names and templates."""
    processor = hf.CLIPImageProcessor.from_pretrained(scored / "source")
    tokenizer = hf.AutoTokenizer.from_pretrained(scored / "source")
    made: Made = hf.AutoModel.from_pretrained(scored / "source").eval(), tokenizer, processor
    given = processor([Image.open(io.BytesIO(file)) for file in photographs()], return_tensors="pt")
    expected = right(chosen(made, dict(given)))
    assert score(scored / "peer" / "results.json", "image->text", "acc@1") == pytest.approx(expected)


def test_a_peer_is_compared_with_a_run(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paired by sample: the difference is that of the two figures, over all samples."""
    out, page = scored / "compare.json", scored / "compare.html"
    words = ["--json", str(out), "--out", str(page), "--resamples", "200"]
    capsys.readouterr()
    assert main(["compare", str(scored / "peer"), str(scored / "ours" / "run"), *words]) == 0
    said, tree = capsys.readouterr().out, json.loads(out.read_text())
    assert "a bundle)" in said and "7 steps)" in said
    assert [run["steps"] for run in tree["runs"]] == [None, 7]
    (pair,) = [one for one in tree["comparisons"] if (one["task"], one["metric"]) == ("image->text", "acc@1")]
    peer, ours = (score(scored / at / "results.json", "image->text", "acc@1") for at in ("peer", "ours/run"))
    assert pair["outcome"]["n"] == 30 and 0 <= pair["outcome"]["p"] <= 1
    assert pair["outcome"]["difference"] == pytest.approx(peer - ours)
    assert "source" in page.read_text()


def test_its_report_says_what_it_is(scored: Path) -> None:
    assert main(["report", str(scored / "peer")]) == 0
    page = (scored / "peer" / "report.html").read_text()
    assert "One model, a bundle of source." in page and "to be trained" not in page and "mmfm train" not in page


def test_scores_of_other_weights_are_not_compared(scored: Path, tmp_path: Path) -> None:
    """Written anew of the same source it has the same weights, of another source others."""
    shutil.copytree(scored / "source", tmp_path / "source")
    model: Any = hf.AutoModel.from_pretrained(scored / "source")
    doubts = []
    for name in ("same", "other"):
        if name == "other":
            moved(model, 5).save_pretrained(tmp_path / "source")  # pyright: ignore[reportCallIssue]
        import_source(str(tmp_path / "source"), tmp_path / name)
        for file in (scored / "peer").glob("results*.json"):
            shutil.copy(file, tmp_path / name)
        doubts.append(read_record(tmp_path / name).doubts)
    assert doubts[0] == () and "is of other weights than" in doubts[1][0]
    with pytest.raises(UserError, match=r"is of other weights than .*score it again: mmfm eval"):
        read_contenders([scored / "peer", tmp_path / "other"])


def test_embeddings_of_shards_are_those_of_the_model(scored: Path) -> None:
    """`mmfm embed`: each picture and text under the key of its sample, of a peer as of a run of ours."""
    opened = [Image.open(io.BytesIO(file)) for file in photographs()]
    for folder in (scored / "peer", scored / "ours" / "run"):
        out = scored / "embeddings.npz"
        assert main(["embed", str(folder), str(scored / "data"), "--out", str(out), "--device", "cpu"]) == 0
        found, model = np.load(out), mmfm.load(folder, device="cpu")
        assert found["image.keys"].tolist() == [f"{at:04d}" for at in range(30)] == found["text.keys"].tolist()
        assert found["text.texts"].tolist() == [NAMES[at % 3] for at in range(30)]
        np.testing.assert_allclose(found["image"], model.encode_image(opened), atol=CLOSE)
        np.testing.assert_allclose(found["text"], model.encode_text(found["text.texts"].tolist()), atol=CLOSE)


def test_embeddings_go_into_a_file_of_numpy(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["embed", str(scored / "peer"), str(scored / "data"), "--out", "x.json"]) == 2
    assert "--out x.json should end in .npz" in capsys.readouterr().err


def test_a_bundle_has_no_steps(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(scored / "peer"), "--data", str(scored / "data"), "--step", "3"]) == 2
    assert "is a bundle, which has no steps; leave out --step" in capsys.readouterr().err


@torch.no_grad()
def test_open_clip_loads_an_exported_peer(scored: Path, tmp_path: Path) -> None:
    assert main(["export", str(scored / "peer"), str(tmp_path / "out"), "--to", "open_clip"]) == 0
    exported_open_clip.register()
    there = f"local-dir:{tmp_path / 'out'}"
    theirs, *_ = open_clip.create_model_and_transforms(there)
    model = mmfm.load(scored / "peer", device="cpu")
    x, ids = torch.stack([model.transform(one) for one in pictures()]), open_clip.get_tokenizer(there)(SENTENCES)
    image, text, scale = theirs.eval()(x / 127.5 - 1, ids)
    torch.testing.assert_close(image, model.encode_image(pictures()), rtol=0, atol=CLOSE)
    torch.testing.assert_close(text, model.encode_text(SENTENCES), rtol=0, atol=CLOSE)
    assert float(scale) == pytest.approx(float(model.logit_scale.exp()))


def test_training_goes_on_with_a_peer(scored: Path, tmp_path: Path) -> None:
    """At first it says what the peer says; it learns; and then it needs the peer no more."""
    peer = tmp_path / "peer"
    shutil.copytree(scored / "peer", peer)
    source = Source(shards=str(scored / "data"), modalities=("image", "text"))
    run = Run(
        name="tuned",
        model=mmfm.native_model(peer),
        start=str(peer),
        data=Data(train=(source,), batch_size=6, num_workers=0, shuffle_buffer=30, exact_decode=True),
        contrastive=(Contrastive(pair=("image", "text")),),
        optim=Optim(steps=60, warmup_steps=1, lr=2e-3),
        out=str(tmp_path),
        save_every_steps=60,
    )
    prepared = prepare(run)
    core = build(prepared.run.model, prepared.tokenizer.size, run.contrastive)
    begin(core, prepared)
    fresh = Interface(core.eval(), prepared.run, prepared.tokenizer).eval()
    before = mmfm.load(peer, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(fresh.encode_image(pictures()), before.encode_image(pictures()), rtol=0, atol=CLOSE)
        torch.testing.assert_close(fresh.logit_scale, before.logit_scale, rtol=0, atol=0)
    train(run)
    shutil.rmtree(peer)
    after = mmfm.load(tmp_path / "tuned", device="cpu")
    assert float((after.encode_image(pictures()) - before.encode_image(pictures())).abs().max()) > 0.01
    words = ["eval", str(tmp_path / "tuned"), "--data", str(scored / "data"), *HERE]
    assert main(words) == 0
    learned = score(tmp_path / "tuned" / "results.json", "image->text", "acc@1")
    assert learned > score(scored / "peer" / "results.json", "image->text", "acc@1") + 0.25
