"""The configurations that start from imported models, over a small one in its place: they are built, checked and taken
one step on conversations as their data sets write them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_chat_template import CHATML_PLAIN, language_folder

from mmfm.__main__ import main
from mmfm.config import Run
from mmfm.config.load import read_run
from mmfm.config.serialization import from_json, to_json
from mmfm.datasets import descriptions
from mmfm.datasets.apt_lists import Package
from mmfm.datasets.function_source import functions_in, gap_of
from mmfm.datasets.python_functions import sample_of
from mmfm.evals.run import evaluate_run
from mmfm.export.importer import import_source
from mmfm.inference.load import load_model
from mmfm.models.adapters import merge
from mmfm.preprocessing.tokenizer import train_tokenizer
from mmfm.training.fit import train

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs" / "adapt").glob("*.py"))


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    write_shard: Callable,
    encode_image: Callable,
    encode_audio: Callable,
    sine: Callable,
) -> Path:
    """A folder as the configurations' commands leave it: a bundle, conversations written, spoken, without a picture and
    with shots, questions about records, and the run of the chat recipe."""
    folder = tmp_path_factory.mktemp("adapt")
    import_source(f"hf:{language_folder(folder / 'llama', CHATML_PLAIN)}", folder / "bundles" / "smol")
    picture = encode_image(np.full((8, 8, 3), 90, np.uint8), "JPEG")
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which?"}]}]
    seen = {"messages": [*turns, {"role": "assistant", "content": "grey"}], "kind": "colour"}
    said = {"messages": [{"role": "user", "content": "hm?"}, {"role": "assistant", "content": "yes"}], "kind": "text"}
    samples = {f"a{n}": {"json": json.dumps(seen).encode(), "0.jpg": picture} for n in range(16)}
    texts = {f"b{n}": {"json": json.dumps(said).encode()} for n in range(16)}
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "audio"}]}]
    heard = {"messages": [*asked, {"role": "assistant", "content": "grey"}], "kind": "spoken-colour"}
    sound = encode_audio(sine(300.0, 0.3))
    spoken = {f"c{n}": {"json": json.dumps(heard).encode(), "0.jpg": picture, "1.wav": sound} for n in range(16)}
    whole = {f"d{n}": parts for n, parts in enumerate(samples.values())}
    for split in ("train", "val", "test"):
        write_shard(folder / "data" / "scenes" / split / "scene-000000.tar", samples)
        write_shard(folder / "data" / "scenes" / split / "described-000000.tar", whole)
        write_shard(folder / "data" / "scenes" / split / "text-000000.tar", texts)
        write_shard(folder / "data" / "scenes" / split / "spoken-000000.tar", spoken)
        for kind in ("synopsis", "en>fr", "en>de", "en>it", "en>fr paragraph", "en>de paragraph", "en>it paragraph"):
            path = folder / "data" / "descriptions" / split / f"{kind.replace('>', '-').replace(' ', '-')}-000000.tar"
            write_shard(path, described(kind, split))
        write_shard(folder / "data" / "scenes" / split / "shots-000000.tar", with_shots(picture))
        for use in ("open", "closed"):
            write_shard(folder / "data" / "packages" / split / f"{use}-000000.tar", texts)
        for kind in ("psm", "spm", "next"):
            write_shard(folder / "data" / "code" / split / f"{kind}-000000.tar", filled(kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        one_step(read_run(ROOT / "configs" / "adapt" / "chat.py"))
    teachers(folder / "bundles")
    return folder


def with_shots(picture: bytes) -> dict[str, dict[str, bytes]]:
    """A picture and its name, which is not learned, and another one."""
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which?"}]},
        {"role": "assistant", "content": "grey"},
    ]
    shot = [turns[0], {**turns[1], "learn": False}]
    parts = {"json": json.dumps({"messages": [*shot, *turns], "kind": "shots-1"}).encode()}
    return {f"d{n}": parts | {"0.jpg": picture, "1.jpg": picture} for n in range(16)}


def one_step(run: Run) -> Path:
    """The folder of the run after its first two steps, with a tower of random weights; in fp32, as a processor without
    instructions for bf16 takes minutes."""
    optim = replace(run.optim, steps=2, warmup_steps=1, precision="fp32")
    tower = replace(run.model.image, weights="random", feature_cache_dir="") if run.model.image else None
    return train(
        replace(run, optim=optim, model=replace(run.model, image=tower), data=replace(run.data, num_workers=0))
    )


def described(kind: str, split: str) -> dict[str, dict[str, bytes]]:
    """Pairs as `mmfm data descriptions` writes them."""
    package = Package("tool", "tool", "1", "net", "", {"en": "a tool"})
    pairs = [descriptions.Pair(kind, f"the text of {n} words", f"a text {n}", package) for n in range(16)]
    samples = [descriptions.sample(pair, split) for pair in pairs]
    return {f"t{n}": {"json": json.dumps(sample).encode()} for n, sample in enumerate(samples)}


def teachers(folder: Path) -> None:
    """Folders where `mmfm import` would put encoders, which a check does not open, and the tokenizer of one of them."""
    for name in ("minilm", "efficientnet"):
        (folder / name).mkdir()
    words = train_tokenizer(["a long text 0123456789"], 300)
    (folder / "minilm" / "mmfm_reader.json").write_text(words.to_json(), "utf-8")


def filled(kind: str) -> dict[str, dict[str, bytes]]:
    """Samples of a kind of the data set `code`."""
    (function,) = functions_in("def add(a):\n    b = a\n    c = b\n    d = c\n    return d\n", "sums")
    gap = gap_of(function, 0, 5) if kind == "next" else gap_of(function, 2)
    sample = json.dumps(sample_of(function, kind, gap, 2)).encode()
    return {f"{kind}{n}": {"json": sample} for n in range(16)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_read_checked_and_kept(path: Path, place: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    run = read_run(path)
    assert from_json(to_json(run), "run.json") == run
    assert main(["train", str(path), "--check"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "cannot be used" not in told and (run.chat is None or ("learned (" in told and "[[" in told))


def test_the_chat_recipe_answers(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    model = load_model("runs/chat")
    picture = np.full((8, 8, 3), 90, np.uint8)
    said = model.chat([{"role": "user", "content": [{"type": "image", "image": picture}, "which?"]}], max_tokens=3)
    assert isinstance(said, str)
    learned = [name for name, p in model.core.named_parameters() if "lora_b" in name and bool(p.any())]
    assert learned


def test_pairs_are_learned_behind_spans_and_answered(place: Path, monkeypatch) -> None:
    """Filling in, then from its weights as text>text: `mmfm eval` asks the same questions as of the causal run, and
    gives its figures the same names."""
    monkeypatch.chdir(place)
    rows = {}
    for name, start in (("spans", ""), ("descriptions_prefix", "runs/spans"), ("descriptions", "")):
        run = read_run(ROOT / "configs" / "adapt" / f"{name}.py")
        optim = replace(run.optim, steps=2, warmup_steps=1, precision="fp32")
        folder = train(replace(run, start=start, optim=optim, data=replace(run.data, num_workers=0)))
        learned = [key for key, p in load_model(folder).core.named_parameters() if "lora_b" in key and bool(p.any())]
        assert learned
        if name != "spans":
            more = {"root": "data/descriptions", "num_workers": 0, "bootstrap": 10, "max_tokens": 3, "limit": 14}
            rows[name] = evaluate_run(folder, ROOT / "configs" / "suites" / "texts.py", **more)
    one, other = ([(row.task, row.metric, row.n) for row in found] for found in rows.values())
    assert one == other and ("messages>text:en>fr (source)", "chrf", 2) in one
    assert any(row.metric == "rougeL" and row.task == "messages>text:synopsis" for row in rows["descriptions"])


def test_shots_go_on_from_the_chat_run(place: Path, monkeypatch) -> None:
    """With its projector, and on its trunk with the adapters in it: only what the step has changed is another."""
    monkeypatch.chdir(place)
    before = load_model("runs/chat")
    merge(before.core)
    after = load_model(one_step(read_run(ROOT / "configs" / "adapt" / "shots.py")))
    merged = before.core.state_dict()
    for name, weight in after.core.state_dict().items():
        if name.startswith("trunk") and "lora" not in name:
            torch.testing.assert_close(
                weight.float(), merged[name.replace(".base.", ".")].float(), atol=1e-2, rtol=1e-2
            )
    assert any("lora_b" in name and bool(p.any()) for name, p in after.core.named_parameters())


def test_documents_are_read_without_a_tower(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    model = load_model(one_step(read_run(ROOT / "configs" / "adapt" / "documents.py")))
    assert not model.core.towers and isinstance(model.chat([{"role": "user", "content": "hm?"}], max_tokens=3), str)
