"""Whole runs at toy size: they learn, resume to the bit, stop when asked, and never lose what was trained."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from toys import toy_config

import mmfm
from mmfm.__main__ import main
from mmfm.config import (
    Augment,
    Contrastive,
    Data,
    Ema,
    Eval,
    Generative,
    Optim,
    Parallel,
    ParamGroup,
    Run,
    Source,
    UserError,
)
from mmfm.config.load import read_run
from mmfm.config.serialization import from_json
from mmfm.datasets.indexing import index_folder
from mmfm.export.command import export
from mmfm.inference.load import load_model
from mmfm.models import checkpoint
from mmfm.models.model import build
from mmfm.runtime.foreign import UNSAFE
from mmfm.training import callbacks, fit, initialize

NAMES = ("zero", "one", "two", "three")
TONES_HZ = (300, 700, 1_500, 3_000)
HALF, LAST = 3, 6  # steps at which a run saves
MANY = Optim(steps=20, lr=3e-3, warmup_steps=5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, write_shard, encode_image, encode_audio, sine) -> Path:
    """Four things: a bright quarter of a picture, or a tone, and the name; never a picture with a tone."""
    folder, draw = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    pictures, tones = {}, {}
    for i in range(64):
        pixels = draw.integers(0, 60, (8, 16), dtype=np.uint8)
        pixels[:, 4 * (i % 4) : 4 * (i % 4) + 4] += 150
        wave = sine(TONES_HZ[i % 4], 0.1) + 0.02 * draw.standard_normal(1_600)
        name = NAMES[i % 4].encode()
        pictures[f"{i:03d}"] = {"png": encode_image(pixels), "txt": name}
        tones[f"{i:03d}"] = {"wav": encode_audio(wave.astype(np.float32)), "txt": name}
    write_shard(folder / "image.tar", pictures)
    write_shard(folder / "audio.tar", tones)
    return folder


@pytest.fixture
def run(shards, tmp_path) -> Run:
    return Run(
        name="toy",
        out=str(tmp_path),
        model=toy_config(dropout=0.1),
        data=Data(
            train=(
                Source(shards=str(shards / "image.tar"), modalities=("image", "text")),
                Source(shards=str(shards / "audio.tar"), modalities=("audio", "text")),
            ),
            val=str(shards),
            batch_size=16,
            num_workers=0,
            augment=Augment(translate=0.1, speed=0.1, time_mask=3, source_token_dropout=0.1, target_token_dropout=0.1),
        ),
        contrastive=(Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text"))),
        generative=(Generative(task="image>text"), Generative(task="audio>text"), Generative(task=">text")),
        optim=Optim(steps=LAST, lr=3e-3, warmup_steps=1),
        eval=Eval(every_steps=0, samples=64),
        save_every_steps=HALF,
        keep_checkpoints=5,
        accelerator="cpu",
    )


def lines(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return dict(mmfm.load(str(run.folder), step).core.state_dict())


def test_it_learns_what_was_planted(run):
    """After 120 steps pictures and tones, which never met, find each other through their names; both are written."""
    data, model = replace(run.data, augment=Augment()), replace(run.model, dropout=0.0)
    optim, evals = replace(run.optim, steps=120, lr=5e-3), replace(run.eval, every_steps=120)
    run = replace(run, data=data, model=model, optim=optim, eval=evals)
    fit.train(run)
    last = lines(run)[-1]
    chance = 0.25
    for score in (
        "image->text/acc@1",
        "audio->text/acc@1",
        "image->audio/R@1",
        "image>text/exact_match",
        "audio>text/exact_match",
    ):
        assert last[f"score/{Path(run.data.val).name}/{score}"] > 3 * chance, score
    model = mmfm.load(str(run.folder))
    assert model.run == run == from_json((run.folder / "run.json").read_text())
    assert not [name for name in os.environ if name.startswith("MMFM_")]  # who is started after it is none of its ranks


def test_every_objective_is_logged_by_name(run):
    """metrics.jsonl holds each loss, their weighted sum, the rate, the gradient's norm and the speed."""
    run = replace(run, generative=(Generative(task="image>text", weight=0.5),))
    fit.train(run)
    (last,) = lines(run)
    assert last["step"] == LAST
    names = ("image-text", "audio-text", "image>text")
    assert {f"loss/{name}" for name in names} == {key for key in last if key.startswith("loss/")}
    parts = [last[f"loss/{name}"] for name in names]
    assert last["loss"] == pytest.approx(parts[0] + parts[1] + 0.5 * parts[2])
    assert last["grad_norm"] > 0 and last["samples_per_s"] == pytest.approx(16 * last["steps_per_s"])
    assert last["tokens_per_s"] > last["samples_per_s"] and 0 <= last["data_wait"] <= 1
    assert 0 <= last["padding/attention"] < 1 and last["padding/image"] == 0 < last["memory_gb"]
    assert last["tflops_per_step"] > 0 and not {"mfu", "communication_mb"} & set(last)  # a CPU has no sheet
    assert any((run.folder / "tensorboard").iterdir())


def test_a_window_of_steps_is_traced(run, capfd):
    """The trace holds the products of these steps and no optimizer step more than there are in it; weights are those of
    a run without; a line says where it is, and a resume whose window has passed is refused."""
    traced = replace(run, name="traced", profile_steps=(2, 3))
    fit.train(run)
    fit.train(traced)
    (path,) = (traced.folder / "profile").iterdir()
    assert str(path) in " ".join(capfd.readouterr().err.split()) and path.name == "steps-2-3-rank-0.json"
    names = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    assert "aten::addmm" in names and sum(name.startswith("Optimizer.step") for name in names) == 2
    torch.testing.assert_close(weights(traced, LAST), weights(run, LAST), rtol=0, atol=0)
    longer = replace(traced, optim=replace(run.optim, steps=2 * LAST, extends=(LAST,)))
    with pytest.raises(
        UserError, match=rf"profile_steps=\(2, 3\): the run goes on from step {LAST}, and that has passed"
    ):
        fit.train(longer, resume=True)


def test_a_run_that_reads_in_parts_is_that_run(run):
    """Parts of 5 of a batch of 16: losses of all steps, the gradient's norm among them, to rounding; and it may go on
    with other parts."""
    whole, parts = run, replace(run, name="parts", parallel=replace(run.parallel, micro_batch=5))
    for one in (whole, parts):
        fit.train(one)
    for one, other in zip(lines(whole), lines(parts), strict=True):
        for name in (name for name in one if name.startswith("loss") or name == "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-3), name
    shutil.rmtree(checkpoint.folder_of(parts.folder, LAST))
    fit.train(replace(parts, parallel=replace(parts.parallel, micro_batch=7)), resume=True)
    assert lines(parts)[-1]["loss"] == pytest.approx(lines(whole)[-1]["loss"], rel=1e-3)


def test_resumed_is_uninterrupted(run):
    """Stopped by a signal in its midst and resumed: weights at the end equal those of a run that never stopped, bit by
    bit, dropout and augmentation included."""
    whole = replace(run, name="whole")
    fit.train(whole)

    class Interrupt(fit.CheckpointSaver):
        def after_step(self, trainer, *rest) -> None:
            super().after_step(trainer, *rest)
            if trainer.global_step == HALF - 1:
                signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit, "CheckpointSaver", Interrupt)
        fit.train(run)
    assert checkpoint.steps_of(run.folder)[-1] < LAST
    with pytest.raises(UserError, match=r"holds a run stopped at step .*add --resume to continue it or --force"):
        fit.train(run)
    fit.train(run, resume=True)
    torch.testing.assert_close(weights(run, LAST), weights(whole, LAST), rtol=0, atol=0)


def test_a_finished_run_is_kept(run, capfd):
    """A second start trains nothing and changes nothing; --force starts anew."""
    fit.train(run)

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != ".lock"}

    before = times()
    fit.train(run)
    assert times() == before
    fit.train(run, force=True)
    assert len(lines(run)) == 1


def test_a_resume_with_another_configuration_names_the_difference(run):
    fit.train(run)
    other = replace(run, optim=replace(run.optim, lr=1e-4))
    with pytest.raises(UserError, match=r"another configuration: optim.lr was 0.003 and is 0.0001 now"):
        fit.train(other, resume=True)


def test_a_resume_on_other_data_is_refused(run, shards, tmp_path):
    """The same paths with other shards behind them: the stream's place would mean other samples."""
    for name in ("image.tar", "audio.tar"):
        (tmp_path / name).write_bytes((shards / name).read_bytes())
    sources = tuple(replace(s, shards=str(tmp_path / Path(s.shards).name)) for s in run.data.train)
    run = replace(run, data=replace(run.data, train=sources))
    fit.train(run)
    checkpoint.shutil.rmtree(checkpoint.folder_of(run.folder, LAST))
    (tmp_path / "image.tar").write_bytes((shards / "audio.tar").read_bytes())
    with pytest.raises(UserError, match=r"has no image, which its source provides|are not those it was trained on"):
        fit.train(run, resume=True)


def test_off_a_terminal_one_hears_at_once_and_seconds_go_on(run, monkeypatch, capsys):
    """What begins, the first step and the last are lines of whole width; a resumed run says so, and its journal's
    seconds never fall."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: float(next(ticks)))
    optim = replace(run.optim, steps=4, warmup_steps=1, param_groups=(ParamGroup(pattern="trunk.*", lr_scale=0.5),))
    half = replace(run, optim=optim, save_every_steps=2)
    fit.train(half)
    said = capsys.readouterr().err
    assert re.search(r"training toy: 4 steps of 16 samples, into \S+/toy, [0-9,]+ parameters, in fp32 on cpu\n", said)
    assert "step 1/4  the first took " in said
    assert "training toy: trunk.*: " in said and "parameters at 0.5 x the rate (trunk)" in said
    assert re.search(r"step 4/4  .*image-text \d.*>text \d", said)
    shutil.rmtree(run.folder / "checkpoints/step-00000004")
    before = lines(half)[-1]["seconds"]
    (run.folder / "metrics.jsonl").write_text(json.dumps({"step": 2, "seconds": 1e6}) + "\n")
    fit.train(half, resume=True)
    assert "training toy: resumed from step 2 of 4" in capsys.readouterr().err
    seconds = [line["seconds"] for line in lines(half) if "seconds" in line]
    assert before > 0 and len(seconds) == 2 and seconds[1] > seconds[0] == 1e6


def test_a_damaged_line_of_the_journal_does_not_stop_a_resume(run, monkeypatch, capsys):
    """Nor one of skipped.jsonl: it is set aside, which is said; the others stay, and a last one that was cut short is
    written again. A run that starts anew leaves nothing of it."""
    monkeypatch.setattr(callbacks, "LOG_EVERY_STEPS", HALF)
    fit.train(run)
    shutil.rmtree(checkpoint.folder_of(run.folder, LAST))
    journal, odd = run.folder / "metrics.jsonl", [b'{"step": 1, "lo', b"\xff\x00", b"[1]", b'{"step": "2"}']
    first, last = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([*odd, first, b"", last, b'{"step": 4']))
    (run.folder / "skipped.jsonl").write_bytes(b'{"posi\n{"position": 47}\n{"position": 48}\n')  # 16 samples a step
    fit.train(run, resume=True)
    assert [line["step"] for line in lines(run)] == [HALF, LAST] and journal.read_bytes().startswith(first + b"\n")
    assert (run.folder / "metrics.jsonl.damaged").read_bytes().splitlines() == odd
    assert (run.folder / "skipped.jsonl").read_text() == '{"position": 47}\n'
    told = "metrics.jsonl: 4 of its lines cannot be read, and are set aside in metrics.jsonl.damaged"
    assert told in capsys.readouterr().err
    fit.train(run, force=True)
    assert not list(run.folder.glob("*.damaged"))


def test_a_line_of_the_journal_is_strict_whatever_the_numbers():
    """What is not finite is named and left out; what is finite stays."""
    odd = {"step": 7, "loss": math.nan, "lr": 1e-3, "grad_norm": math.inf}
    assert callbacks.finite(odd) == {"step": 7, "lr": 1e-3, "not_finite": ["loss", "grad_norm"]}
    assert callbacks.finite({"step": 7, "loss": 1.0}) == {"step": 7, "loss": 1.0}


def test_no_loss_is_cut_at_80_columns(run, monkeypatch):
    """The bar has a line of its own; all losses stand below it, on as many lines as they need."""
    screen = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(callbacks, "console", screen)
    bar = callbacks.ProgressBar(run, callbacks.MetricsLogger(run))
    losses = "  ".join(f"loss-{i} 1.234" for i in range(9))
    bar.progress.update(bar.task, completed=3, losses=losses)
    screen.print(bar.progress.get_renderable())
    shown = screen.export_text()
    assert shown.split()[-18:] == losses.split() and f"3/{LAST}" in shown


def test_a_checkpoint_is_no_place_for_a_run(run):
    """A checkpoint's folder stands for its configuration; trained into, it would be lost."""
    run = replace(run, save_every_steps=1, optim=replace(run.optim, steps=1, warmup_steps=0))
    fit.train(run)
    there = checkpoint.folder_of(run.folder, 1)
    with pytest.raises(UserError, match=r"step-00000001 is a checkpoint, and training into it would spoil it; give"):
        fit.train(read_run(there), force=True)
    checkpoint.manifest_of(there).verify()
    with pytest.raises(UserError, match=r"toy has no checkpoint of step 5; it has those of 1$"):
        load_model(run.folder, 5)


def test_a_finished_run_is_lengthened_by_a_schedule_of_its_own(run):
    """To the bit the run that was asked for all its steps at once; the remedy of the refusal is the one that works."""
    run = replace(run, save_every_steps=2, optim=replace(run.optim, steps=2))
    fit.train(run)
    longer = replace(run, optim=replace(run.optim, steps=4))
    with pytest.raises(UserError, match=r"--resume --optim.steps N --optim.extends 2 goes on beyond it"):
        fit.train(longer, resume=True)
    stated = replace(longer, optim=replace(longer.optim, extends=(2,)))
    fit.train(stated, resume=True)
    assert checkpoint.steps_of(run.folder) == [2, 4] and [line["step"] for line in lines(run)] == [2, 4]
    whole = replace(stated, name="whole")
    fit.train(whole)
    assert all(torch.equal(value, weights(whole, 4)[name]) for name, value in weights(run, 4).items())


def test_a_run_starts_from_another_with_all_that_it_learned(run, capsys):
    """Connectors, pools, heads and scales too; what is new begins anew and is named; the rest of the table stays."""
    run = replace(run, save_every_steps=2, optim=replace(run.optim, steps=2, warmup_steps=1))
    fit.train(run)
    before = weights(run, 2)
    pairs = (*run.contrastive, Contrastive(pair=("image", "audio")))
    warm = replace(run, name="warm", start=str(run.folder), contrastive=pairs)
    prepared = initialize.prepare(warm)
    model = build(prepared.run.model, prepared.tokenizer.size, warm.contrastive)
    first, second = initialize.begin(model, prepared)
    assert "starts from" in first and second.endswith("has none: biases.image-audio, log_scales.image-audio")
    for name, value in model.state_dict().items():
        assert name.endswith("image-audio") or torch.equal(value, before[name]), name
    fit.train(warm)
    assert "training warm: starts from" in capsys.readouterr().err
    wide = replace(warm, model=replace(run.model, embed_dim=4))
    with pytest.raises(UserError, match=r"heads.image.weight has shape \(8, 16\) in .* and \(4, 16\) here; make that"):
        initialize.begin(build(wide.model, prepared.tokenizer.size, warm.contrastive), replace(prepared, run=wide))


def test_gradients_that_are_not_finite_change_nothing_and_then_stop(run, monkeypatch):
    """With every loss nan the weights stay as they were, and after ten steps the run stops with the remedy."""
    from mmfm.objectives.joint import Objectives

    total = Objectives.total
    monkeypatch.setattr(Objectives, "total", lambda self, losses: total(self, losses) * float("nan"))
    with pytest.raises(UserError, match=r"not finite 10 steps in a row.*lower optim.lr"):
        fit.train(replace(run, optim=MANY))


def test_the_seed_decides_everything(run):
    """Two runs of one seed end in the same weights; another seed does not."""
    runs = [replace(run, name=name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for one in runs:
        fit.train(one)
    a, b, c = (weights(one, LAST)["embedding.weight"] for one in runs)
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(("has", "told"), [({"avx2": True}, 1), ({"avx2": True, "avx512_bw": True}, 0)])
def test_a_run_whose_products_are_slow_here_says_so_once(run, monkeypatch, capsys, has, told):
    monkeypatch.setattr("mmfm.runtime.devices.processor", lambda: has)
    fit.train(replace(run, optim=replace(run.optim, precision="bf16", steps=2)))
    said = capsys.readouterr().err
    assert said.count("no instructions for products in bfloat16") == told
    assert said.count("--optim.precision fp32 is faster") == told


def test_half_precision_follows_fp32(run):
    """bf16 and fp16 train: losses stay within a tenth of those in fp32 after twenty steps."""
    run = replace(run, optim=MANY, save_every_steps=20)
    others = [replace(run, name=name, optim=replace(MANY, precision=name)) for name in ("bf16", "fp16")]
    for one in (run, *others):
        fit.train(one)
    for other in others:
        assert lines(other)[-1]["loss"] == pytest.approx(lines(run)[-1]["loss"], rel=0.1)


def test_fp16_resumes_to_the_bit_with_its_scale(run):
    """The scale of the loss, which overflows have lowered, is in the checkpoint, and goes on from there; Muon too."""
    optim = replace(run.optim, precision="fp16", optimizer="muon")
    run = replace(run, optim=optim, parallel=Parallel(micro_batch=8))
    whole = fit.train(run)
    scale = checkpoint.verified(checkpoint.folder_of(whole, HALF)).tree()["ScaledPrecision"]
    assert scale["scale"] <= 2.0**16
    other = replace(run, name="resumed")
    shutil.copytree(whole, other.folder)
    shutil.rmtree(checkpoint.folder_of(other.folder, LAST))
    fit.train(other, resume=True)
    for name, x in weights(run, LAST).items():
        assert torch.equal(weights(other, LAST)[name], x), name


def test_a_moving_average_is_saved_resumed_and_read(run, tmp_path):
    """At a decay of 0 it is the weights themselves; at another it lags behind them, the same to the bit whether the run
    was stopped in its midst; what no step moves is as it is. `load` and `export` take it where it is asked for, and
    what keeps none says so."""
    with pytest.raises(UserError, match=r"step-00000006 keeps no moving average; train with optim.ema"):
        mmfm.load(fit.train(replace(run, name="none")), device="cpu", ema=True)
    loaded = {}
    for name, decay in (("same", 0.0), ("late", 0.8)):
        one = replace(run, name=name, optim=replace(run.optim, ema=Ema(decay=decay)))
        plain, average = (mmfm.load(fit.train(one), device="cpu", ema=ema).core.state_dict() for ema in (False, True))
        equal = [torch.equal(x, average[key]) for key, x in plain.items()]
        assert all(equal) == (decay == 0) and (decay == 0 or equal.count(False) > 20)
        loaded[name] = average
    again = replace(one, name="again")
    shutil.copytree(one.folder, again.folder)
    shutil.rmtree(checkpoint.folder_of(again.folder, LAST))
    fit.train(again, resume=True)
    average = mmfm.load(again.folder, device="cpu", ema=True).core.state_dict()
    assert all(torch.equal(x, average[key]) for key, x in loaded["late"].items())
    export(again.folder, "hf", tmp_path / "bundle", ema=True)
    bundle = mmfm.load(tmp_path / "bundle", device="cpu").core.state_dict()
    assert all(torch.equal(x, bundle[key]) for key, x in average.items() if key in bundle)
    with pytest.raises(UserError, match="is a bundle, which keeps no moving average"):
        export(tmp_path / "bundle", "hf", tmp_path / "other", ema=True)
    with pytest.raises(UserError, match="is a bundle, which keeps no moving average"):
        mmfm.load(tmp_path / "bundle", device="cpu", ema=True)


def test_what_is_wrong_with_the_data_is_said_before_anything_is_written(run, tmp_path):
    source = replace(run.data.train[0], shards=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        fit.train(replace(run, data=replace(run.data, train=(source,))))
    assert not run.folder.exists()


def test_wrong_data_with_force_removes_nothing(run, tmp_path):
    """What was trained is removed when the new run can start, and not before."""
    fit.train(run)
    source = replace(run.data.train[0], shards=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        fit.train(replace(run, data=replace(run.data, train=(source,))), force=True)
    assert checkpoint.steps_of(run.folder) == [HALF, LAST] and len(lines(run)) == 1


def test_a_run_goes_on_in_the_folder_that_is_named(run, tmp_path, monkeypatch):
    """`mmfm train RUN --resume`, from another working folder and after RUN was moved: nothing is begun elsewhere."""
    fit.train(run)
    checkpoint.shutil.rmtree(checkpoint.folder_of(run.folder, LAST))
    moved = run.folder.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "../moved", "--resume"]) == 0
    assert checkpoint.steps_of(moved) == [HALF, LAST] and not run.folder.exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_in_use_is_refused_in_one_line(run, capfd):
    """A second start beside the first, even with --force, changes nothing and names the process that has the folder."""
    code = (
        "import sys; from pathlib import Path; from mmfm.runtime.files import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"toy is being trained by process {holder.pid} on .* or use another"):
            fit.train(run, force=True)
        holder.kill()
    fit.train(run)


def test_resume_needs_something_to_resume(run):
    """A name that was never trained is a mistake; a run that was killed before its first checkpoint begins again."""
    with pytest.raises(UserError, match="has no checkpoint to resume; leave --resume out"):
        fit.train(run, resume=True)
    assert not run.folder.exists()


@pytest.mark.parametrize("tokens", [0, 60])
def test_bad_samples_are_counted_listed_once_and_kept(run, shards, tmp_path, write_shard, encode_image, tokens):
    """Two of 16 pictures cannot be read: skipped.jsonl lists each time one was asked for, a resume repeats no line and
    drops none, also where a budget of tokens decides how many samples a step has, and the checkpoint's counts are those
    of the lines."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 16), dtype=np.uint8)
    samples = {f"{i:03d}": {"png": encode_image(pixels), "txt": NAMES[i % 4].encode()} for i in range(16)}
    samples["007"]["png"] = samples["013"]["png"] = b"\x89PNG no picture"
    path = write_shard(tmp_path / "image.tar", samples)
    sound = shutil.copy(shards / "audio.tar", tmp_path)
    sources = (replace(run.data.train[0], shards=str(path)), replace(run.data.train[1], shards=str(sound)))
    data = replace(run.data, train=sources, max_bad_fraction=0.5, tokens_per_batch=tokens)
    if tokens:
        index_folder(tmp_path, tokenizer="bytes", workers=1, progress=False)
    run = replace(run, data=data, eval=Eval(every_steps=0))
    fit.train(run)
    whole = (run.folder / "skipped.jsonl").read_text()
    listed = [json.loads(line) for line in whole.splitlines()]
    assert {line["key"] for line in listed} == {"007", "013"}
    checkpoint.shutil.rmtree(checkpoint.folder_of(run.folder, LAST))
    fit.train(run, resume=True)
    assert (run.folder / "skipped.jsonl").read_text() == whole
    folder = checkpoint.folder_of(run.folder, LAST)
    state = checkpoint.verified(folder).tree()["StreamData"]["health"]
    assert sum(state["totals"][2:]) == len(listed)


def test_too_much_that_is_bad_stops_the_run(run, tmp_path, write_shard, encode_image):
    """Over `max_bad_fraction`, here ten samples, an error ends the run before it saves; all that was skipped
    by then is listed."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 16), dtype=np.uint8)
    pictures = [encode_image(pixels) if i % 8 else b"no picture" for i in range(64)]
    path = write_shard(tmp_path / "image.tar", {f"{i:03d}": {"png": x, "txt": b"one"} for i, x in enumerate(pictures)})
    data = replace(run.data, train=(replace(run.data.train[0], shards=str(path)),), max_bad_fraction=0.001)
    with pytest.raises(
        UserError, match=r"1\d of the last \d+ samples of .* cannot be used .*, over data.max_bad_fraction=0.001"
    ):
        some = replace(run, contrastive=run.contrastive[:1], generative=run.generative[:1])
        fit.train(replace(some, data=data, optim=MANY, save_every_steps=10))
    assert 10 < len((run.folder / "skipped.jsonl").read_text().splitlines()) < 20
    assert not checkpoint.steps_of(run.folder)


def test_an_address_and_an_unsafe_environment_are_refused(run, monkeypatch, tmp_path):
    """A run is written to local folders, not to one called `s3:`; and not where torch is told to unpickle."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is an address; give a local folder"):
        fit.train(replace(run, out="s3://bucket/runs"))
    monkeypatch.setenv(UNSAFE, "1")
    with pytest.raises(UserError, match=r"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set"):
        fit.train(run)
    assert not (tmp_path / "s3:").exists() and not run.folder.exists()


def test_compiling_without_a_compiler_is_said_before_anything_is_written(run, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match=r"no-such-compiler is not found; install it, name another one by CXX, or leave"
    ):
        fit.train(replace(run, parallel=Parallel(compile=True)))
    assert not run.folder.exists() or not any(run.folder.glob("checkpoints"))
