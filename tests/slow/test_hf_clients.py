"""Clients that bring worlds of their own, unchanged, on an exported folder: their scores are ours."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from exported import Exported, adopt, export, full_run
from PIL import Image
from toy_encoders import hf_folder

from mmfm.config import Tower, UserError
from mmfm.data.decode import Example, collate
from mmfm.export import hf
from mmfm.models.model import UnifiedModel

TEXTS = ["seven of nine", "forty-two", "a longer text, with a comma", "x"]
CHOICES = ["one", "two three", "four"]
CHOSEN = 6  # tokens to generate


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Exported:
    return export(tmp_path_factory.mktemp("slow"), seed=4)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (20, 40, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [0.1 * draw.standard_normal(4_000 + 900 * i).astype(np.float32) for i in range(3)]


def fresh(arguments: list[str], where: Path) -> str:
    """What a new process of Python prints. Nothing of this one is in it, and it asks no network."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(where / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=where, env=os.environ | offline, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


STRANGER = """
import json, sys
import numpy, torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, pipeline

assert "mmfm" not in sys.modules
torch.set_num_threads(1)
folder, again, names = sys.argv[1], sys.argv[2], ["seven", "eight"]
picture, wave = Image.open("x.png"), numpy.load("x.npy")
use = {"model": folder, "trust_remote_code": True}
out = {
    "image": pipeline("zero-shot-image-classification", **use)(picture, candidate_labels=names),
    "audio": pipeline("zero-shot-audio-classification", **use)(wave, candidate_labels=names),
    "features": pipeline("image-feature-extraction", **use)(picture),
    "text": pipeline("text-generation", **use)("seven", max_new_tokens=6)[0]["generated_text"],
    "any": pipeline("any-to-any", **use)(text="", images=picture, max_new_tokens=6)[0]["generated_text"],
    "sentence": SentenceTransformer(again, trust_remote_code=True, device="cpu").encode(names).tolist(),
    "processor": type(AutoProcessor.from_pretrained(folder, trust_remote_code=True)).__name__,
    "model": type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__,
}
print(json.dumps(out))
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning:sentence_transformers.*")
def test_sentence_transformers_and_a_stranger(made, pictures, waves, tmp_path):
    """Text, pictures and sounds through sentence-transformers are ours to 1e-6, also saved by it and loaded again.

    A process that never imports mmfm runs all pipelines on the folder, and sentence-transformers on what was saved.
    """
    from sentence_transformers import SentenceTransformer

    hf.register()
    st = SentenceTransformer(str(made.folder), device="cpu")
    ours = {
        "text": (TEXTS, made.model.encode_text(TEXTS)),
        "image": (pictures, made.model.encode_image(pictures)),
        "audio": (
            [{"array": wave, "sampling_rate": 16_000} for wave in waves],
            torch.cat([made.model.encode_audio(torch.from_numpy(wave)[None]) for wave in waves]),
        ),
    }
    st.save(str(tmp_path / "st"))
    for model in (st, SentenceTransformer(str(tmp_path / "st"), device="cpu")):
        assert set(model.modalities) == {"text", "image", "audio"}
        for given, vectors in ours.values():
            np.testing.assert_allclose(model.encode(given), vectors.numpy(), rtol=0, atol=1e-6)
    pictures[0].save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", waves[0])
    (tmp_path / "stranger.py").write_text(STRANGER)
    told = json.loads(fresh(["stranger.py", str(made.folder), str(tmp_path / "st")], tmp_path))
    core, names = made.model.core, ["seven", "eight"]
    for name, vector in (("image", ours["image"][1][:1]), ("audio", ours["audio"][1][:1])):
        template = {"image": "This is a photo of {}.", "audio": "This is a sound of {}."}[name]
        text = made.model.encode_text([template.format(word) for word in names])
        scores = (core.scale(f"{name}-text") * vector @ text.T).softmax(-1)[0].tolist()
        assert {item["label"]: item["score"] for item in told[name]} == pytest.approx(
            dict(zip(names, scores, strict=True)), abs=1e-5
        )
    np.testing.assert_allclose(told["features"], ours["image"][1][:1].numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(told["sentence"], made.model.encode_text(names).numpy(), rtol=0, atol=1e-6)
    assert told["text"] == "seven" + continued(made, "seven")
    assert told["any"] == made.model.generate("image>text", image=pictures[0], max_tokens=6)
    assert (told["processor"], told["model"]) == ("MMFMProcessor", "MMFMModel")


def unmarked(where: Path) -> Exported:
    """A text tower whose own tokenizer puts no mark around a text, so that of an empty one nothing is left."""
    letters = {chr(code): i for i, code in enumerate(range(ord("a"), ord("z") + 1))} | {"<end>": 26}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    marks = {"eos_token": "<end>", "pad_token": "<end>", "model_max_length": 32}
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    small = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 26, "eos_token_id": 26}
    hf_folder(where / "text", transformers.GPT2Config(vocab_size=27, **small), plain)
    return adopt(where, full_run(image=None, audio=None, text=Tower(source=str(where / "text"))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:sentence_transformers.*")
@pytest.mark.parametrize("own", [True, False])
def test_an_empty_text_is_a_text_to_every_client(made, tmp_path, own, pictures):
    """Alone and beside another: our vector of it, our scores of it as a name, our continuation of nothing."""
    from sentence_transformers import SentenceTransformer

    one = made if own else unmarked(tmp_path)
    hf.register()
    ours = one.model.encode_text(["", "abc"]).numpy()
    st = SentenceTransformer(str(one.folder), device="cpu")
    for texts, expected in (("", ours[0]), ([""], ours[:1]), (["", "abc"], ours)):
        np.testing.assert_allclose(st.encode(texts), expected, rtol=0, atol=1e-6)
    found = transformers.pipeline("feature-extraction", model=str(one.folder))("", return_tensors=True)
    np.testing.assert_allclose(found.detach().numpy(), ours[:1], rtol=0, atol=1e-6)
    write = transformers.pipeline("text-generation", model=str(one.folder))
    if not own:  # its text would be read by one tokenizer and written by another
        with pytest.raises(
            UserError, match="begin with a text, perhaps an empty one, by the tokenizer for writing; it"
        ):
            write("", max_new_tokens=CHOSEN)
        writing = transformers.AutoTokenizer.from_pretrained(one.folder, subfolder="writer")
        write = transformers.pipeline("text-generation", model=str(one.folder), tokenizer=writing)
    assert write("", max_new_tokens=CHOSEN)[0]["generated_text"] == continued(one, "")
    if own:
        name = transformers.pipeline("zero-shot-image-classification", model=str(one.folder))
        scores = {
            item["label"]: item["score"]
            for item in name(pictures[0], candidate_labels=["", "abc"], hypothesis_template="{}")
        }
        core, image = one.model.core, one.model.encode_image(pictures[:1])
        wanted = (core.scale("image-text") * image @ one.model.encode_text(["", "abc"]).T).softmax(-1)[0]
        assert [scores[""], scores["abc"]] == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension` method:FutureWarning")  # mteb calls it
@pytest.mark.filterwarnings("ignore:The fill_missing parameter is deprecated:DeprecationWarning")  # its own
@pytest.mark.filterwarnings("ignore:Precision is ill-defined")  # a class that no one predicted, of two
def test_mteb_scores_as_we_do(made):
    """Its own offline tasks: a zero-shot classification, retrieval both ways and of texts, against our vectors."""
    import mteb
    from mteb.mocks.mock_tasks import retrieval, zeroshot_classification
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    hf.register()
    model = SentenceTransformerEncoderWrapper(SentenceTransformer(str(made.folder), device="cpu"))
    model.mteb_model_meta = model.mteb_model_meta.model_copy(update={"modalities": ["text", "image", "audio"]})
    for kind in ("MockZeroShotClassificationTask", "MockTextZeroShotClassificationTask"):
        task = getattr(zeroshot_classification, kind)()
        task.load_data()
        data, names = task.dataset["test"], task.get_candidate_labels()
        theirs = mteb.evaluate(model, task, cache=None).task_results[0].scores["test"][0]["accuracy"]
        guess = (vectors(made, data) @ made.model.encode_text(names).T).argmax(1)
        truth = [label if isinstance(label, int) else names.index(label) for label in data["label"]]
        assert theirs == pytest.approx((guess == torch.tensor(truth)).float().mean().item(), abs=1e-4)
    for kind in ("MockAny2AnyRetrievalI2TTask", "MockAny2AnyRetrievalT2ITask"):
        task = getattr(retrieval, kind)()
        task.load_data()
        data = task.dataset["default"]["test"]
        scores = mteb.evaluate(model, task, cache=None).task_results[0].scores["test"][0]
        assert scores["ndcg_at_1"] == pytest.approx(hit(made, data), abs=1e-4)


def vectors(made: Exported, rows) -> torch.Tensor:
    """Of a table with a column of pictures, or else of texts."""
    if "image" in rows.column_names:
        return made.model.encode_image(list(rows["image"]))
    return made.model.encode_text(list(rows["text"]))


def hit(made: Exported, split: dict) -> float:
    """How often the nearest document is the one that belongs to the query."""
    nearest = (vectors(made, split["queries"]) @ vectors(made, split["corpus"]).T).argmax(1)
    good = [
        split["relevant_docs"][query].get(split["corpus"]["id"][int(place)], 0)
        for query, place in zip(split["queries"]["id"], nearest, strict=True)
    ]
    return float(np.mean(good))


@torch.no_grad()
def logits(core: UnifiedModel, ids: list[int]) -> torch.Tensor:
    """Of our own trunk, all at once: log-probabilities of what follows each place."""
    target = core.target(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
    return core.logits(core.trunk([target])[0][0]).log_softmax(-1)


def ids_of(made: Exported, text: str) -> list[int]:
    return [i + made.model.core.vocabulary.span("text").start for i in made.model.tokenizer.encode(text)]


def continued(made: Exported, text: str) -> str:
    """Greedy, with nothing kept from step to step."""
    vocabulary = made.model.core.vocabulary
    start, new = [vocabulary.begin("text"), *ids_of(made, text)], []
    for _ in range(CHOSEN):
        scores = logits(made.model.core, start + new)[-1]
        scores[
            [i for i in range(vocabulary.size) if i < vocabulary.span("text").start and i != vocabulary.end]
        ] = -torch.inf
        new.append(int(scores.argmax()))
        if new[-1] == vocabulary.end:
            break
    return made.model.tokenizer.decode([i - vocabulary.span("text").start for i in new if i != vocabulary.end])


def write_tasks(where: Path) -> None:
    (where / "ppl.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    rows = [{"q": text, "choices": CHOICES, "gold": i % 3} for i, text in enumerate(TEXTS)]
    (where / "mc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {
        "toy_ppl": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
        "toy_mc": {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"},
        "toy_gen": {"output_type": "generate_until", "doc_to_target": "{{q}}"},
    }
    metrics = {"toy_ppl": "bits_per_byte", "toy_mc": "acc", "toy_gen": "exact_match"}
    for name, task in tasks.items():
        file = str(where / ("ppl.jsonl" if name == "toy_ppl" else "mc.jsonl"))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}, "test_split": "test"}
        more = {"generation_kwargs": {"max_gen_toks": CHOSEN, "until": ["\n\n"]}} if name == "toy_gen" else {}
        tree = {"task": name, "doc_to_text": "{{q}}", "metric_list": [{"metric": metrics[name]}]} | data | task | more
        (where / f"{name}.yaml").write_text(json.dumps(tree))


def run_lm_eval(made: Exported, where: Path, tasks: str, arguments: str = "") -> tuple[dict, dict]:
    """Results by task, and what was answered to each document."""
    out = where / f"out{len(arguments)}"
    fresh(
        ["-m", "lm_eval", "run", "--model", "hf", "--tasks", tasks, "--include_path", str(where), "--device", "cpu",
         "--model_args", f"pretrained={made.folder},trust_remote_code=True{arguments}", "--batch_size", "3",
         "--output_path", str(out), "--log_samples"], where,
    )  # fmt: skip
    results = json.loads(next(out.rglob("results*.json")).read_text())["results"]
    samples = {
        path.name.split("_20")[0].removeprefix("samples_"): [
            row["resps"]
            for row in sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["doc_id"])
        ]
        for path in out.rglob("samples*.jsonl")
    }
    return results, samples


def test_lm_eval_measures_our_bits_per_byte(made, tmp_path):
    """Rolling perplexity is `nats` without the end mark, which lm-eval does not score: equal to 1e-4 bits per byte."""
    write_tasks(tmp_path)
    results, _ = run_lm_eval(made, tmp_path, "toy_ppl", ",add_bos_token=False")
    core, model = made.model.core, made.model
    nats = model.nats(">text", collate([Example(key="k", text=text) for text in TEXTS], model.tokenizer)).sum().item()
    begin, end = core.vocabulary.begin("text"), core.vocabulary.end
    nats += sum(logits(core, [begin, *ids_of(made, text)])[-1, end].item() for text in TEXTS)
    ours = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert results["toy_ppl"]["bits_per_byte,none"] == pytest.approx(ours, abs=1e-4)


def test_lm_eval_chooses_and_writes_as_we_do(made, tmp_path):
    """Each answer's log-likelihood after the begin mark and the question, and the text that follows one, in batches."""
    write_tasks(tmp_path)
    results, samples = run_lm_eval(made, tmp_path, "toy_mc,toy_gen")
    begin, best = made.model.core.vocabulary.begin("text"), []
    for text, found in zip(TEXTS, samples["toy_mc"], strict=True):
        ours = []
        for choice in CHOICES:
            question, answer = [begin, *ids_of(made, text)], ids_of(made, f" {choice}")
            scores = logits(made.model.core, question + answer)[len(question) - 1 : -1]
            ours.append(scores.gather(1, torch.tensor(answer)[:, None]).sum().item())
        assert [float(item[0][0]) for item in found] == pytest.approx(ours, abs=1e-3)
        best.append(int(np.argmax(ours)))
    accuracy = np.mean([chosen == i % 3 for i, chosen in enumerate(best)])
    assert results["toy_mc"]["acc,none"] == pytest.approx(accuracy, abs=1e-4)
    written = [found[0][0] for found in samples["toy_gen"]]
    assert written == [continued(made, text).split("\n\n")[0] for text in TEXTS]
    assert len(set(written)) > 1
