"""FLOPs by formula: what torch counts on the real step; and what is counted of padding, parts and locked towers."""

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_encoders import hf_folder
from toys import PAIRS, WRITES, padded, toy_batch, toy_config, toy_model, toy_run

from mmfm.config import Conformer, Lora, Mel, Model, Run, TextTower, Tower, Trunk, Vit
from mmfm.data.batch import Batch, Items
from mmfm.models.adapters import is_adapter
from mmfm.models.flops import step_flops
from mmfm.models.model import UnifiedModel, build
from mmfm.models.read_counts import ReadCounts
from mmfm.objectives.grad_cache import grad_cache_backward
from mmfm.objectives.joint import Objectives
from mmfm.training.initialize import prepare

CPU = torch.device("cpu")


def wide(**changes: object) -> Model:
    parts = {
        "image": Vit(height_px=32, width_px=32, patch_px=8, channels=3, width=64, depth=2, heads=4),
        "audio": Conformer(mel=Mel(bins=40), width=64, depth=2, heads=4),
        "text": TextTower(width=64, depth=2, heads=4),
        "trunk": Trunk(width=96, depth=3, heads=4, kv_heads=2),
        "embed_dim": 64,
    }
    return Model(**(parts | changes))


def whole_batch(size: int = 8, text: int = 12, samples: int = 8_000) -> Batch:
    """Every sample has everything, and all are as long as each other, so that no place is padding."""
    rows, ones = torch.arange(size), torch.ones(size, dtype=torch.int64)
    pixels = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8)
    items = {
        "image": Items(x=pixels, keep=torch.ones(size, 1, dtype=torch.bool), rows=rows),
        "audio": padded(torch.randn(size, samples), samples * ones, rows),
        "text": padded(torch.randint(0, 256, (size, text)), text * ones, rows),
    }
    return Batch(size=size, items=items, positive_ids=rows)


def counted(model: UnifiedModel) -> float:
    return step_flops(model, *model.read_counts.named(model.read_counts.drain(CPU)))


def both(model: UnifiedModel, run: Run, batch: Batch) -> tuple[float, float]:
    """By formula, and by torch's counter of the operations that ran."""
    objectives = Objectives(model.train(), run)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objectives.total(objectives(batch)).backward()
    return counted(model), counter.get_total_flops()


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_the_formula_is_what_torch_counts(stem: str) -> None:
    """Within 2 % on a step of three towers, three contrasts and three tasks."""
    image = replace(wide().image, stem=stem)
    run = toy_run(model=wide(image=image))
    ours, theirs = both(build(run.model, 256, PAIRS), run, whole_batch())
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_a_locked_tower_has_no_backward(modality: str) -> None:
    """Its forward alone is counted, by torch and by the formula, which is less than before by two of three."""
    run = toy_run(model=wide())
    model = build(run.model, 256, PAIRS)
    before, _ = both(model, run, whole_batch())
    model.lock([name for name, _ in model.named_parameters() if name.startswith(f"towers.{modality}.")])
    ours, theirs = both(model, run, whole_batch())
    assert ours < before and ours == pytest.approx(theirs, rel=0.03)


@pytest.mark.parametrize("base", ["fp32", "int8"])
@pytest.mark.parametrize("locked", [("trunk.*",), ("trunk.*", "towers.*", "embedding*")])
def test_under_adapters_locked_weights_have_no_gradient_of_their_own(base: str, locked: tuple[str, ...]) -> None:
    """Gradients go through them to what learns below: two forwards of theirs, three of the adapters'. A packed weight
    is as many numbers as it stands for."""
    run = toy_run(model=wide(adapters=(Lora(pattern="trunk.*", rank=4, base=base),)))
    model = build(run.model, 256, PAIRS)
    names = [name for name, _ in model.named_parameters() if not is_adapter(name)]
    model.lock([name for name in names if any(fnmatchcase(name, pattern) for pattern in locked)])
    ours, theirs = both(model, run, whole_batch())
    assert ours == pytest.approx(theirs, rel=0.03)


def test_an_imported_encoder_counts_too(tmp_path: Path) -> None:
    """Whisper's, of transformers: its convolutions stand before its longest list of layers."""
    how = {"d_model": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 256}
    whisper = hf.WhisperConfig(**how, encoder_layers=3, decoder_layers=1, num_mel_bins=80, max_source_positions=1500)
    hf_folder(tmp_path, whisper, hf.WhisperFeatureExtractor(feature_size=80))
    tower = Tower(source=str(tmp_path), window_seconds=1.0)
    run = toy_run(model=wide(audio=tower), contrastive=PAIRS[:2], generative=WRITES[:2])
    run = prepare(run).run
    ours, theirs = both(build(run.model, 256, run.contrastive), run, whole_batch(samples=16_000))
    assert ours == pytest.approx(theirs, rel=0.02)


def test_padding_is_no_work_of_the_model() -> None:
    """A long text beside a short one adds what both add alone, and no more."""
    model, run = build(wide(), 256, ()), toy_run(model=wide(), contrastive=(), generative=WRITES[2:])
    objectives = Objectives(model.train(), run)

    def flops(lengths: list[int]) -> float:
        text = padded(
            torch.zeros(len(lengths), 40, dtype=torch.int64), torch.tensor(lengths), torch.arange(len(lengths))
        )
        objectives(Batch(size=len(lengths), items={"text": text}, positive_ids=torch.arange(len(lengths))))
        return counted(model)

    assert flops([3, 40]) == flops([3]) + flops([40])


def test_a_step_in_parts_counts_once() -> None:
    """GradCache reads each part twice, and the model's work is that of one reading."""
    run, batch = toy_run(), toy_batch(size=9)
    model = toy_model().train()
    objectives = Objectives(model, run)
    objectives.total(objectives(batch)).backward()
    whole, of_whole = model.read_counts.named(model.read_counts.drain(CPU))
    grad_cache_backward(objectives, batch, 4)
    parts, of_parts = model.read_counts.named(model.read_counts.drain(CPU))
    kinds = ("items", "tokens", "pairs", "wanted")
    assert of_whole == of_parts > 0
    assert {n: [c[k] for k in kinds] for n, c in whole.items()} == {n: [c[k] for k in kinds] for n, c in parts.items()}


def test_evaluation_is_not_counted_and_asking_begins_anew() -> None:
    model, run = toy_model(), toy_run()
    objectives = Objectives(model, run)
    with torch.no_grad():
        objectives(toy_batch())
    assert not model.read_counts.drain(CPU).any()
    objectives(toy_batch())
    first = model.read_counts.drain(CPU)
    assert first.any() and not model.read_counts.drain(CPU).any()


def test_counts_are_those_that_were_planted() -> None:
    """Texts of 2 and 5 tokens: 7 real ones of 10 places, 4 + 25 pairs; the trunk reads a begin beside each."""
    model, run = build(toy_config(), 20, ()), toy_run(contrastive=(), generative=WRITES[2:])
    text = padded(torch.zeros(2, 5, dtype=torch.int64), torch.tensor([2, 5]), torch.arange(2))
    batch = Batch(size=2, items={"text": text}, positive_ids=torch.arange(2))
    model.source("text", text)
    Objectives(model, run)(batch)
    found, _ = model.read_counts.named(model.read_counts.drain(CPU))
    assert found["text"] == {"items": 2, "places": 10, "tokens": 7, "pairs": 29, "wanted": 0}
    assert found["target"]["tokens"] == 9 and found["trunk"]["tokens"] == 9
    assert found["trunk"]["pairs"] == 9 + 36 and found["trunk"]["items"] == 2


def test_ranks_add_up() -> None:
    """What is drained is whole numbers in one order on every rank, whatever each of them has read."""
    a, b = ReadCounts(["image", "text"]), ReadCounts(["image", "text"])
    a.add("trunk", tokens=5)
    b.add("target", tokens=7)
    b.add_contrast(3, 6)
    both_ranks = a.drain(CPU) + b.drain(CPU)
    found, embeddings = a.named(both_ranks)
    assert (found["trunk"]["tokens"], found["target"]["tokens"], embeddings) == (5, 7, 18)
