"""Codecs that are trained here: the grid of codes, that neighbours and padding change nothing, that they learn."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import TEXT_IDS, toy_batch, toy_config, toy_run

from mmfm.config import AudioCodec, Generative, ImageCodec, Mel, Model, Reconstruction, Run, UserError
from mmfm.config.task import parse
from mmfm.data.vocabulary import CodeFormat
from mmfm.models.codecs import AudioAutoencoder, Codec, ImageAutoencoder, Trainable
from mmfm.models.codecs.audio import _error
from mmfm.models.codecs.fsq import Quantiser
from mmfm.models.layers import init_weights
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.objectives.task_pass import forward_task
from mmfm.training.initialize import trained_codec
from mmfm.training.optimizer import unasked
from mmfm.training.preflight import check

IMAGE = ImageCodec(height_px=8, width_px=16, channels=1, patch_px=4, levels=(4, 3), width=16, depth=1)
AUDIO = AudioCodec(mel=Mel(bins=16), frame_stack=4, num_codebooks=2, levels=(3, 4), width=24, depth=1)


def image_codec() -> ImageAutoencoder:
    torch.manual_seed(0)
    codec = ImageAutoencoder(IMAGE)
    init_weights(codec)
    return codec


def audio_codec() -> AudioAutoencoder:
    torch.manual_seed(0)
    codec = AudioAutoencoder(AUDIO)
    init_weights(codec)
    return codec.double()


@pytest.mark.parametrize("levels", [(2,), (3,), (8, 5), (5, 4, 2), (8, 6, 5)])
def test_every_code_is_a_place_of_the_grid(levels):
    """As many codes as places, each with a vector of its own; written out by hand, odd and even levels alike."""
    quantiser = Quantiser(6, levels)
    places = list(itertools.product(*(range(level) for level in reversed(levels))))  # the first one turns fastest
    grid = [[place - level // 2 for place, level in zip(row[::-1], levels, strict=True)] for row in places]
    by_hand = torch.tensor(grid) / torch.tensor([level // 2 for level in levels])
    found = quantiser.vectors(torch.arange(quantiser.size))
    torch.testing.assert_close(found, quantiser.leave(by_hand))
    assert len(found.detach().round(decimals=5).unique(dim=0)) == quantiser.size == len(places)


@pytest.mark.parametrize("levels", [(2,), (7,), (8, 5, 5), (16, 2)])
def test_whatever_goes_in_comes_out_at_its_code(levels):
    """Numbers far outside stay on the grid; the vectors of the forward pass are those of the codes; all are reached."""
    torch.manual_seed(0)
    quantiser = Quantiser(4, levels).double()
    nn.init.normal_(quantiser.enter.weight, std=2.0)
    x = torch.cat([3 * torch.randn(20_000, 4), 1e9 * torch.randn(50, 4)]).double()
    vectors, codes = quantiser(x)
    assert codes.min() >= 0 and codes.max() < quantiser.size
    torch.testing.assert_close(vectors, quantiser.vectors(codes))
    assert len(quantiser(x * torch.linspace(0, 1, len(x))[:, None])[1].unique()) == quantiser.size


def test_the_gradient_passes_the_rounding():
    """It is that of the bounded number itself (the straight-through estimate)."""
    quantiser = Quantiser(2, (5, 4)).double()
    with torch.no_grad():
        quantiser.enter.weight.copy_(torch.eye(2)), quantiser.enter.bias.zero_()
    z = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    vectors, _ = quantiser(z)
    (found,) = torch.autograd.grad(vectors.sum(), z)
    slope = torch.autograd.grad(quantiser.leave(quantiser._bounded(z) / (quantiser.levels // 2)).sum(), z)[0]
    torch.testing.assert_close(found, slope)
    assert found.abs().min() > 0


def test_an_image_is_coded_alike_alone_and_among_others():
    codec, x = image_codec(), torch.randint(0, 256, (5, 1, 8, 16), dtype=torch.uint8)
    keep = torch.ones(5, 1, dtype=torch.bool)
    ids, real = codec.encode(x, keep)
    assert real.all() and ids.shape == (5, codec.form.length) and ids.max() < 12
    assert torch.equal(ids[2:3], codec.encode(x[2:3], keep[:1]).ids)
    assert len(ids.unique()) > 3
    pictures, _ = codec.decode(ids, real)
    torch.testing.assert_close(pictures[1:2], codec.decode(ids[1:2], real[:1])[0], rtol=0, atol=1)


def test_a_sound_is_coded_alike_alone_and_padded():
    """Whatever lies in the padding; and its codes decode to the same sound."""
    codec = audio_codec()
    waves = 0.1 * torch.randn(3, 9_000, dtype=torch.float64)
    keep = torch.arange(9_000) < torch.tensor([9_000, 5_000, 333])[:, None]
    ids, real = codec.encode(waves, keep)
    steps = -(-keep.sum(1) // codec.step_samples)
    assert real.sum(1).tolist() == (2 * steps).tolist()
    sounds, heard = codec.decode(ids, real)
    for row, size in enumerate((9_000, 5_000, 333)):
        alone = codec.encode(waves[row : row + 1, :size], keep[row : row + 1, :size])
        assert torch.equal(ids[row][real[row]], alone.ids[0])
        sound, alone_heard = codec.decode(*alone)
        torch.testing.assert_close(sounds[row][heard[row]], sound[0][alone_heard[0]], rtol=0, atol=1e-4)
        assert heard[row].sum() == steps[row] * codec.step_samples
    assert len(ids[real].unique()) > 6


def test_books_take_turns():
    """The codes of a step stand side by side, each in the range of its own book; the form says so too."""
    codec = audio_codec()
    ids, real = codec.encode(torch.randn(1, 8_000, dtype=torch.float64), torch.ones(1, 8_000, dtype=torch.bool))
    assert codec.form == CodeFormat((12, 12))
    for step, code in enumerate(ids[0][real[0]].tolist()):
        assert code in codec.form.candidates(step)
    assert not codec.form.may_end(0) and not codec.form.may_end(1) and codec.form.may_end(2)


def test_an_image_has_its_length_and_a_text_may_be_empty():
    form = CodeFormat((12,), 8)
    assert [form.may_end(step) for step in (0, 7, 8)] == [False, False, True]
    assert list(form.candidates(7)) == list(range(12)) and not form.candidates(8)
    assert CodeFormat((9,), empty=True).may_end(0)


@pytest.mark.parametrize("made", [image_codec, audio_codec])
def test_it_is_a_codec_that_can_be_trained(made):
    codec = made()
    assert isinstance(codec, Codec) and isinstance(codec, Trainable)


def test_an_image_codec_learns():
    """Sixteen pictures of two shades: the error falls below a third of where it began."""
    codec, side = image_codec(), torch.randint(0, 2, (16, 1, 2, 4)) * 200 + 20
    x = side.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    assert learned(codec, x, torch.ones(16, 1, dtype=torch.bool), 60) < 0.3


def test_an_audio_codec_learns():
    """Eight tones: the error of their frames falls to less than half of where it began."""
    time = torch.arange(6_400) / 16_000
    x = torch.stack([0.3 * torch.sin(2 * torch.pi * 250 * (1 + pitch) * time) for pitch in range(8)])
    assert learned(audio_codec().float(), x, torch.ones_like(x, dtype=torch.bool), 60) < 0.4


def test_a_critic_and_its_codec_learn_in_one_pass():
    """What the codec learns of its critic moves no weight of it, and what that learns moves none of the codec."""
    torch.manual_seed(0)
    codec, x = (
        ImageAutoencoder(replace(IMAGE, adversarial=0.5)),
        torch.randint(0, 256, (3, 1, 8, 16), dtype=torch.uint8),
    )
    losses = codec.losses(x, torch.ones(3, 1, dtype=torch.bool))
    assert list(losses) == ["absolute", "squared", "judged", "apart"]
    for name, own in (("judged", False), ("apart", True)):
        codec.zero_grad()
        losses[name].backward(retain_graph=True)
        moved = {
            key.startswith("critic.") for key, p in codec.named_parameters() if p.grad is not None and p.grad.any()
        }
        assert moved == {own}


def test_a_critic_learns_to_tell_and_a_codec_to_pass():
    """Against fixed outputs the critic's loss falls; against a fixed critic the codec is judged better."""
    torch.manual_seed(0)
    codec = AudioAutoencoder(replace(AUDIO, adversarial=1.0, scales=(1, 4)))
    init_weights(codec)
    x = 0.1 * torch.randn(4, 6_400)
    keep = torch.ones_like(x, dtype=torch.bool)
    for name, parameters in (("apart", codec.critic.parameters()), ("judged", codec.decoder.parameters())):
        optimizer, found = torch.optim.Adam(parameters, 3e-3), []
        for _ in range(25):
            loss = codec.losses(x, keep)[name]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        assert found[-1] < found[0] - 0.2


def test_a_mean_over_frames_forgives_what_a_frame_does_not():
    """Errors that cancel within four frames count at one frame, and not at four; each by hand."""
    wanted = torch.zeros(1, 8, 2)
    found = torch.tensor([1.0, -1.0, 1.0, -1.0, 0, 0, 0, 2.0])[None, :, None].expand(1, 8, 2)
    keep = torch.ones(1, 8, dtype=torch.bool)
    assert float(_error(found, wanted, keep, 1)) == pytest.approx((4 * 2 + 2 + 4) / 8)
    assert float(_error(found, wanted, keep, 4)) == pytest.approx((0.5 + 0.25) / 2)


def test_a_mean_over_frames_counts_no_padding():
    """Every loss of a clip, at scales that divide it and that do not, is that of the clip alone; and so they add up."""
    cfg = replace(AUDIO, scales=(1, 2, 3, 5, 8), adversarial=0.1)
    torch.manual_seed(0)
    codec = AudioAutoencoder(cfg).double()
    lengths = torch.tensor([4_000, 1_000, 2_311, 1])
    x = torch.randn(4, 4_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keep = torch.arange(4_000) < lengths[:, None]
    alone = [codec.losses(x[i : i + 1, :n], keep[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())]
    for name, value in codec.losses(x, keep).items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).sum(), msg=name)
    for i, n in enumerate(lengths.tolist()):
        for name, value in codec.losses(x[i : i + 1], keep[i : i + 1]).items():
            torch.testing.assert_close(value, alone[i][name], msg=name)
            assert n == lengths[i]


def precisely(codec: nn.Module, x: torch.Tensor, keep: torch.Tensor, dtype: torch.dtype) -> None:
    """Codes, and what they decode to, are the same to the bit under autocast and in a model that is cast."""
    ids = codec.encode(x, keep)
    plain = codec.decode(*ids)
    assert len(ids.ids.unique()) > 3, "codes that are all alike would be no test"
    around = nn.ModuleDict({"codec": copy.deepcopy(codec), "other": nn.Linear(1, 1)}).to(dtype)
    assert around["other"].weight.dtype == dtype
    for one, cast in ((codec, True), (around["codec"], False), (around["codec"], True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            found = one.encode(x, keep)
            again = one.decode(*found)
        assert torch.equal(found.ids, ids.ids) and torch.equal(found.keep, ids.keep)
        assert all(map(torch.equal, again, plain))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_changes_no_code(dtype: torch.dtype) -> None:
    """Of both codecs: what a model in half precision is trained on is what it is scored on."""
    draw = torch.Generator().manual_seed(0)
    image, audio = image_codec().float(), audio_codec().float()
    pictures = torch.randint(0, 256, (40, 1, 8, 16), generator=draw, dtype=torch.uint8)
    precisely(image, pictures, torch.ones(40, 1, dtype=torch.bool), dtype)
    waves = torch.randn(4, 8_000, generator=draw) * torch.tensor([1.0, 0.1, 0.01, 0.5])[:, None]
    precisely(audio, waves, torch.arange(8_000) < torch.tensor([[8_000], [3_000], [4_321], [640]]), dtype)


def test_a_model_that_is_cast_writes_the_same_targets() -> None:
    """The whole model in bfloat16 still reads and writes, and its targets are those of single precision."""
    torch.manual_seed(0)
    model = build(toy_config(image_codec=IMAGE, audio_codec=AUDIO), TEXT_IDS).eval()
    batch = toy_batch()
    sounds = batch.items["audio"]
    held = {**batch.items, "audio": replace(sounds, x=sounds.x.float())}
    wanted = {name: model.written(name, held[name]).ids for name in ("image", "audio")}
    model.bfloat16()
    assert model.dtype == torch.bfloat16 and model.device == torch.device("cpu")
    for name, ids in wanted.items():
        assert torch.equal(model.written(name, held[name]).ids, ids)
        reading = forward_task(model, parse(f"text>{name}"), replace(batch, items=held))
        assert reading is not None and reading.states.dtype == torch.bfloat16 and reading.states.isfinite().all()
    model.double()
    assert model.codec("image").encoder[0].weight.dtype == torch.float64  # pyright: ignore[reportAttributeAccessIssue]


def learned(codec: Trainable, x: torch.Tensor, keep: torch.Tensor, steps: int) -> float:
    """The last loss as a part of the first."""
    optimizer, found = torch.optim.Adam(codec.parameters(), 3e-3), []  # pyright: ignore
    for _ in range(steps):
        loss = torch.stack(list(codec.losses(x, keep, None).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found[-1] / found[0]


def codec_run(**changes: object) -> Run:
    run = toy_run(
        generative=(),
        contrastive=(),
        reconstruction=(Reconstruction(modality="image"), Reconstruction(modality="audio")),
    )
    return replace(run, **({"model": toy_config(image_codec=IMAGE, audio_codec=AUDIO)} | changes))


def test_reconstruction_trains_codecs_and_nothing_else():
    """Each loss is the mean over the items; every parameter of the codecs gets a gradient, and no other one."""
    run = codec_run()
    model = build(run.model, TEXT_IDS).double()
    model.lock(unasked(model, run))
    objectives = Objectives(model, run)
    batch = toy_batch()
    losses = objectives(batch)
    items = batch.items["image"]
    by_hand = [
        sum(model.codecs["image"].losses(items.x[i : i + 1], items.keep[i : i + 1], None).values()) for i in range(4)
    ]
    torch.testing.assert_close(losses["image codec"], sum(by_hand) / 4)
    objectives.total(losses).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith("codecs.")}


def test_a_codec_that_is_only_used_stands_still():
    """In a run that writes its codes none of its parameters learns, and all others that are asked for do."""
    run = codec_run(reconstruction=(), generative=(Generative(task="text>image"),))
    model = build(run.model, TEXT_IDS).double()
    model.lock(unasked(model, run))
    objectives = Objectives(model, run)
    objectives.total(objectives(toy_batch())).backward()
    assert all(p.grad is None for p in model.codecs.parameters())
    assert model.towers["text"].blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_weights_of_no_run_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"image_codec.weights: .* holds no trained run; train that codec first"):
        trained_codec(replace(IMAGE, weights=str(tmp_path)), "image")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: codec_run(reconstruction=()), "list some in `contrastive`, `generative`"),
        (lambda: codec_run(model=toy_config()), "audio codec is to be trained, but model.audio_codec is None"),
        (
            lambda: codec_run(generative=(Generative(task=">image"),), reconstruction=()),
            "image_codec has no weights and is not trained",
        ),
        (
            lambda: toy_run(generative=(Generative(task="text>image"),)),
            "text>image writes image, but model.image_codec is None",
        ),
    ],
)
def test_what_could_not_be_trained_is_said_before(run, words):
    with pytest.raises(UserError, match=words):
        check(run())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ImageCodec(patch_px=6), "patch_px=6 is no power of two"),
        (lambda: ImageCodec(height_px=20, patch_px=8), "height_px=20 must be a multiple of patch_px=8"),
        (lambda: AudioCodec(levels=()), "levels is empty"),
        (lambda: AudioCodec(levels=(1, 5)), "at least 2 levels"),
        (lambda: ImageCodec(levels=(64, 64, 64)), "make 262144 codes; at most 65536"),
        (lambda: Model(image_codec=IMAGE, image_codes=5), "image_codes=5 are too few for the 12 codes"),
        (lambda: Generative(task="image~", mask_ratio=(0.5, 0.2)), "must be two rising fractions"),
        (lambda: Generative(task="text>image", condition_dropout=1.0), "must be at least 0 and below 1"),
        (lambda: Generative(task="text>image", sample_fraction=0.0), "must be above 0 and at most 1"),
    ],
)
def test_a_configuration_that_means_nothing_says_why(make, words):
    with pytest.raises(UserError, match=words):
        make()
