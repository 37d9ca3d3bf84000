"""Other people's tools on an exported folder, unchanged: their scores are ours. The slow ones are in tests/slow."""

import io

import numpy as np
import pytest
import torch
from exported import Exported, export
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from rich.console import Console
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.multimodal import CLIPScore
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

from mmfm.evals.run import evaluate_run
from mmfm.export import hf

NAMES = ["seven", "forty-two", "x", "a hundred and one"]
# peft asks transformers for what that has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Exported:
    hf.register()
    return export(tmp_path_factory.mktemp("clients"), seed=2)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Stripes of four kinds under noise, so that a model with random weights tells some of them apart."""
    draw = np.random.default_rng(3)
    tilt = [np.sin((np.arange(32)[:, None] * (i % 2) + np.arange(48) * (i // 2)) * 0.4) for i in range(4)]
    noisy = [100 + 60 * tilt[i % 4][..., None] + 30 * draw.standard_normal((32, 48, 3)) for i in range(24)]
    return [Image.fromarray(pixels.clip(0, 255).astype(np.uint8)) for pixels in noisy]


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    draw = np.random.default_rng(4)
    return [0.2 * draw.standard_normal(4_000 + 700 * i).astype(np.float32) for i in range(4)]


def softmax(made: Exported, modality: str, x: torch.Tensor, texts: list[str]) -> torch.Tensor:
    core, pair = made.model.core, f"{modality}-text"
    return (core.scale(pair) * x @ made.model.encode_text(texts).T + core.bias(pair)).softmax(-1)


def test_zero_shot_pipelines_score_as_we_do(made, pictures, waves):
    """Pictures and sounds, with a template, each alone and in a list: the softmax of our own scaled similarities."""
    texts = [f"This is {name}." for name in NAMES]
    how = {"candidate_labels": NAMES, "hypothesis_template": "This is {}."}
    image = pipeline("zero-shot-image-classification", model=str(made.folder))(pictures[:3], **how)
    sound = pipeline("zero-shot-audio-classification", model=str(made.folder))(waves, **how)
    vectors = torch.cat([made.model.encode_audio(torch.from_numpy(wave)[None]) for wave in waves])
    ours = [
        *softmax(made, "image", made.model.encode_image(pictures[:3]), texts),
        *softmax(made, "audio", vectors, texts),
    ]
    for found, mine in zip([*image, *sound], ours, strict=True):
        scores = {item["label"]: item["score"] for item in found}
        assert [scores[name] for name in NAMES] == pytest.approx(mine.tolist(), abs=1e-5)
        assert found[0]["label"] == NAMES[int(mine.argmax())]


def test_the_pipelines_accuracy_is_that_of_mmfm_eval(made, pictures, tmp_path, write_shard, encode_image):
    """The same files, classes and template: acc@1 is equal to 1e-4, and it is neither nothing nor all."""
    samples = {
        f"{i:03d}": {"png": encode_image(np.asarray(picture)), "txt": NAMES[i % 4].encode()}
        for i, picture in enumerate(pictures)
    }
    shard = write_shard(tmp_path / "toy-000000.tar", samples)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    rows = evaluate_run(
        made.run, data=[f"toy={shard}"], out=tmp_path / "r.json", classes=tmp_path / "names.txt",
        templates=["a {}"], max_tokens=2, bootstrap=5, console=Console(file=io.StringIO()),
    )  # fmt: skip
    scores = {(row.task, row.metric): row.value for row in rows}
    classify = pipeline("zero-shot-image-classification", model=str(made.folder))
    found = classify(pictures, candidate_labels=NAMES, hypothesis_template="a {}")
    accuracy = np.mean([item[0]["label"] == NAMES[i % 4] for i, item in enumerate(found)])
    assert accuracy == pytest.approx(scores["image->text", "acc@1"], abs=1e-4)
    assert 0 < accuracy < 1
    writer, tokenizer = (auto.from_pretrained(made.folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    texts = [NAMES[i % 4] for i in range(len(pictures))]
    ids = [torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]]) for text in texts]
    with torch.no_grad():
        nats = sum(writer(input_ids=row, labels=row).loss.item() * (row.shape[1] - 1) for row in ids)
    bits = nats / np.log(2) / sum(len(text.encode()) for text in texts)
    assert bits == pytest.approx(scores[">text", "bits_per_byte"], abs=1e-4)


def test_features_come_out_of_their_pipeline(made, pictures):
    extract = pipeline("image-feature-extraction", model=str(made.folder))
    ours = made.model.encode_image(pictures[:2])
    for pool in (False, True):
        theirs = torch.cat(extract(pictures[:2], return_tensors=True, pool=pool))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


def test_text_generation_continues_a_text_in_a_batch_as_alone(made):
    """Greedy unless one asks otherwise. Prompts of different lengths are padded, which changes nothing."""
    write = pipeline("text-generation", model=str(made.folder))
    alone = [write(text, max_new_tokens=6)[0]["generated_text"] for text in NAMES]
    together = write(NAMES, max_new_tokens=6, batch_size=4)
    assert alone == [item[0]["generated_text"] for item in together]
    assert all(found.startswith(name) for found, name in zip(alone, NAMES, strict=True))


def test_any_to_any_writes_what_we_write(made, pictures, tmp_path):
    pictures[0].save(tmp_path / "x.png")
    found = pipeline("any-to-any", model=str(made.folder))(text="", images=str(tmp_path / "x.png"), max_new_tokens=6)
    assert found[0]["generated_text"] == made.model.generate("image>text", image=tmp_path / "x.png", max_tokens=6)


def test_lora_of_a_writer_learns_merges_and_comes_back(made, tmp_path):
    """One step lowers the loss, nothing but the adapter moves, merged weights and saved adapters say the same."""
    ids = torch.tensor([[3, 40, 50, 60, 2], [3, 99, 98, 97, 2]])
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(made.folder), LoraConfig(r=4, target_modules=["qkv", "gate_up"])
    )
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    optimiser = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    before = model(input_ids=ids, labels=ids).loss
    before.backward()
    optimiser.step()
    tuned = model(input_ids=ids, labels=ids)
    assert tuned.loss < before - 0.01
    assert all(torch.equal(frozen[name], value) for name, value in model.named_parameters() if name in frozen)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.folder), tmp_path / "adapter")
    torch.testing.assert_close(again(input_ids=ids).logits, tuned.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.merge_and_unload()(input_ids=ids).logits, tuned.logits, rtol=0, atol=2e-5)


def test_lora_of_the_two_towers_learns_by_their_own_loss(made, pictures):
    """The contrastive loss of the run, through transformers' return_loss."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModel.from_pretrained(made.folder), LoraConfig(r=4, target_modules=r".*towers.*(qkv|proj|fc1)")
    )
    tokens = AutoTokenizer.from_pretrained(made.folder)(NAMES, padding=True, return_tensors="pt")
    pixels = torch.stack([made.model.transform(picture) for picture in pictures[:4]])
    optimiser = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        losses.append(loss := model(**tokens, pixel_values=pixels, return_loss=True).loss)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.05


def test_the_trainer_learns_by_the_models_own_loss(made, pictures, tmp_path):
    """transformers' Trainer, whose batches are in two parts: what it adds to them is taken, and the loss falls."""
    tokenizer = AutoTokenizer.from_pretrained(made.folder)

    def collate(rows: list[int]) -> dict[str, object]:
        tokens = tokenizer([NAMES[i] for i in rows], padding=True, return_tensors="pt")
        pixels = torch.stack([made.model.transform(pictures[i]) for i in rows])
        return {**tokens, "pixel_values": pixels, "return_loss": True}

    how = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=1e-2, report_to=[], save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True, seed=0,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=AutoModel.from_pretrained(made.folder), args=how, train_dataset=[0, 1, 2, 3], data_collator=collate
    )
    trainer.train()
    losses = [item["loss"] for item in trainer.state.log_history if "loss" in item]
    assert losses[-1] < losses[0] - 0.05


def test_torchmetrics_takes_the_embeddings(made, pictures):
    """CLIPScore is 100 times the mean cosine; the Frechet distance of a set to itself is zero, to another it is not."""
    x = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures[:4]])
    cosines = (made.model.encode_image(pictures[:4]) * made.model.encode_text(NAMES)).sum(-1)
    good = [i for i, cosine in enumerate(cosines.tolist()) if cosine > 0]
    score = CLIPScore(model_name_or_path=hf.clip_score_shim(made.folder))
    found = score(x[good], [NAMES[i] for i in good])
    assert found.item() == pytest.approx(100 * cosines[good].mean().item(), abs=1e-3)
    distance = FrechetInceptionDistance(feature=hf.PlainFeatures(made.folder), input_img_size=(3, 32, 48))
    distance.update(x, real=True)
    distance.update(x, real=False)
    assert distance.compute().item() == pytest.approx(0, abs=1e-4)
    distance.update(255 - x, real=False)
    assert distance.compute() > 1e-3
