"""open_clip and CLIP_benchmark run our models as their own: same ids, same embeddings, same scores, no adapter."""

import json
import sys
from pathlib import Path

import clip_benchmark.cli
import open_clip
import pytest
import torch
from safetensors import safe_open
from shared_exports import NAMES, TEMPLATES, classification, pictures, retrieval, saved, square, words
from toys import PAIRS, toy_config

from mmfm.__main__ import main
from mmfm.config import TokenizerSpec, UserError
from mmfm.evals.zero_shot import class_vectors
from mmfm.export import clip_benchmark as ours
from mmfm.export.command import export
from mmfm.export.tokenizer import PAD, write_tokenizer
from mmfm.inference.load import load_model
from mmfm.preprocessing.tokenizer import Reader, Tokenizer

TEXTS = ["a red picture", "something blue", f"{PAD} is text"]
LONG = "grey" * 150


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    saved(folder, square())
    return folder


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    return export(run, "open_clip", tmp_path_factory.mktemp("exports") / "out")


@pytest.fixture(scope="module")
def theirs(folder):
    """What open_clip's own loaders make of the folder."""
    ours.register()
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_open_clip_loads_the_folder(run, theirs):
    """Texts and pictures of the model's size: the embeddings of `mmfm.load`, to six digits; its temperature too."""
    model, (loaded, transform, tokenizer) = load_model(run), theirs
    with torch.no_grad():
        same(loaded.encode_text(tokenizer(TEXTS)), model.encode_text(TEXTS))
        found = loaded.encode_image(torch.stack([transform(picture) for picture in pictures(3)]), normalize=True)
        same(found, model.encode_image(pictures(3)))
        spaced = loaded.encode_text(tokenizer(["something  blue "]))  # open_clip tidies white space first
        same(spaced, model.encode_text(TEXTS[1:2]))
        image, text, scale = loaded(torch.stack([transform(one) for one in pictures(2)]), tokenizer(TEXTS[:2]))
    same(image, model.encode_image(pictures(2)))
    same(text, model.encode_text(TEXTS[:2]))
    same(loaded.logit_scale, model.logit_scale)
    same(scale, model.core.scale("image-text"))


def test_a_picture_that_is_resized_is_all_but_the_same(run, theirs):
    """open_clip resizes by Pillow, we by torch's 8-bit kernels: embeddings differ by less than 0.01."""
    model, (loaded, transform, _) = load_model(run), theirs
    given = pictures(4, side=40)
    with torch.no_grad():
        found = loaded.encode_image(torch.stack([transform(picture) for picture in given]))
    difference = (found - model.encode_image(given)).abs().max()
    assert 0 < difference < 0.01


def test_a_longer_text_is_cut(run, theirs):
    """open_clip pads and cuts to one length, which is where ours cuts: both read the same of a text of any length."""
    model, (loaded, _, tokenizer) = load_model(run), theirs
    limit, longer = model.run.data.max_text_tokens, 20 * LONG
    ids = tokenizer([LONG, longer])
    assert ids.shape == (2, limit) and 256 < len(model.tokenizer.encode(LONG)) < limit
    with torch.no_grad(), pytest.warns(UserWarning, match="only the beginning of a long text is read"):
        torch.testing.assert_close(loaded.encode_text(ids), model.encode_text([LONG, longer]), rtol=0, atol=1e-5)


def test_only_what_open_clip_reads_is_in_the_file(run, folder):
    """No audio tower, and no path of this machine."""
    with safe_open(folder / "open_clip_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "audio" in name]  # noqa: SIM118
    assert str(run.parent) not in (folder / "open_clip_config.json").read_text()


def test_grey_models_are_given_colours(tmp_path):
    """open_clip always gives three channels; a model of one sees their grey, to 1/255 of Pillow's own."""
    saved(tmp_path / "run", toy_config())
    out = export(tmp_path / "run", "open_clip", tmp_path / "out")
    ours.register()
    loaded, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out}")
    model = load_model(tmp_path / "run")
    given = [picture.resize((16, 8)) for picture in pictures(3)]
    with torch.no_grad():
        found = loaded.eval().encode_image(torch.stack([transform(picture) for picture in given]))
    torch.testing.assert_close(found, model.encode_image(given), rtol=0, atol=0.01)


def test_their_classifier_takes_ours_as_it_is(run):
    """Zero adapter lines: open_clip's head of a loaded run is that of `mmfm eval`."""
    model = load_model(run)
    templates = [lambda name, t=template: t.replace("{}", name) for template in TEMPLATES]
    head = open_clip.build_zero_shot_classifier(model, model.tokenize, NAMES, templates, device="cpu")
    torch.testing.assert_close(head.T, class_vectors(model, NAMES, TEMPLATES), rtol=0, atol=1e-6)


def benchmark(monkeypatch: pytest.MonkeyPatch, root: Path, out: Path, *arguments: str) -> dict[str, float]:
    """What CLIP_benchmark's command line writes."""
    words = ["eval", "--dataset", "wds/toy", "--dataset_root", str(root), "--num_workers", "0", "--no_amp", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", *words, "--output", str(out), *arguments])
    clip_benchmark.cli.main()
    return json.loads(out.read_text())["metrics"]


def scores(run: Path, root: Path, out: Path) -> dict[tuple[str, str], float]:
    """What `mmfm eval` writes."""
    words = ["eval", str(run), "--data", f"toy={root}/test/0.tar", "--out", str(out), "--bootstrap", "2"]
    lists = [
        f"--{flag}={root / file}" for flag, file in (("classes", "classnames.txt"), ("templates", "templates.txt"))
    ]
    assert main([*words, *(lists if (root / "classnames.txt").exists() else [])]) == 0
    rows = json.loads(out.read_text())
    rows = rows if isinstance(rows, list) else rows["rows"]
    return {(row["task"], row["metric"]): row["value"] for row in rows}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_classification_scores_are_those_of_mmfm_eval(run, folder, tmp_path, write_shard, monkeypatch):
    """acc@1, acc@5 and mean per class: their command line on the run, and on its open_clip folder, gives ours."""
    root = classification(tmp_path / "data", write_shard)
    wanted = scores(run, root, tmp_path / "ours.json")
    ours.register()
    ways = [["--model_type", "mmfm", "--model", str(run)], ["--model", f"local-dir:{folder}", "--pretrained", "none"]]
    for way in ways:
        found = benchmark(monkeypatch, root, tmp_path / "theirs.json", "--task", "zeroshot_classification", *way)
        for name, metric in (("acc1", "acc@1"), ("acc5", "acc@5"), ("mean_per_class_recall", "mean_per_class")):
            assert found[name] == pytest.approx(wanted["image->text", metric], abs=1e-4)
    assert 0 < wanted["image->text", "acc@1"] < 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_retrieval_scores_are_those_of_mmfm_eval(run, folder, tmp_path, write_shard, monkeypatch):
    """Hit rates at 1, 5 and 10, both ways."""
    root = retrieval(tmp_path / "data", write_shard)
    wanted = scores(run, root, tmp_path / "ours.json")
    ours.register()
    ways = [["--model_type", "mmfm", "--model", str(run)], ["--model", f"local-dir:{folder}", "--pretrained", "none"]]
    for way in ways:
        asked = ["--task", "zeroshot_retrieval", "--recall_k", "1", "5", "10", *way]
        found = benchmark(monkeypatch, root, tmp_path / "theirs.json", *asked)
        for k in (1, 5, 10):
            assert found[f"image_retrieval_recall@{k}"] == pytest.approx(wanted["text->image", f"R@{k}"], abs=1e-4)
            assert found[f"text_retrieval_recall@{k}"] == pytest.approx(wanted["image->text", f"R@{k}"], abs=1e-4)
    assert 0 < wanted["image->text", "R@10"] < 1


def test_a_tokenizer_with_marks_keeps_them(tmp_path):
    """Of a tower with its own tokenizer: open_clip's ids are the reader's, marks and lower case too, then padding."""
    inner = words().inner
    inner.add_special_tokens(["<s>", "</s>"])
    begin, end = inner.token_to_id("<s>"), inner.token_to_id("</s>")
    contract = TokenizerSpec(sha256="0" * 64, context=12, begin=(begin,), end=(end,), pad=end, lower=True)
    reader = Reader(inner, contract, inner.to_str())
    pad = write_tokenizer(Tokenizer(words().inner, reader), contract, 12, tmp_path)
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=12)
    texts = ["A Red picture", "blue <s> </s>", "something grey and much longer than that"]
    for row, text in zip(theirs(texts).tolist(), texts, strict=True):
        wanted = reader.encode(text)
        assert row == wanted + [pad] * (12 - len(wanted))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contrastive": PAIRS[1:2]}, "trained without contrast of image and text"),
        ({"model": square(text=None), "contrastive": PAIRS[2:]}, "this one has no text tower"),
    ],
)
def test_what_open_clip_cannot_hold_is_refused(changes, words, tmp_path):
    """And nothing is left."""
    saved(tmp_path / "run", **({"model": square()} | changes))
    with pytest.raises(UserError, match=words):
        export(tmp_path / "run", "open_clip", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
