"""`mmfm plan`: counted steps are those that run, memory is what a process takes, and what follows is planted."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from bench_plan import ASSUMED, CONFIGS, nowhere, stamps, wide
from torch import nn
from toys import toy_batch, toy_model, toy_run

from mmfm.__main__ import main
from mmfm.config import Ema, Optim, Parallel, Run
from mmfm.config.load import read_run
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.plan import estimate, timing
from mmfm.plan.command import lines, planned
from mmfm.plan.counting import Counting, Moment, without_numbers
from mmfm.plan.estimate import (
    MOVING,
    OPTIMIZER,
    PRODUCTS,
    Machines,
    compute_seconds,
    is_sharded,
    largest_batch,
    memory_of,
    plan,
)
from mmfm.plan.measure import Counted, Measured, Sizes, count, measure, sizes_of
from mmfm.runtime.accelerators import KNOWN
from mmfm.training.sharding import chosen_strategy


def any_to_any() -> Run:
    run = read_run(CONFIGS / "any.py")
    return replace(run, data=replace(run.data, batch_size=24))


RUNS = {
    "quickstart": lambda: read_run(CONFIGS / "quickstart.py"),
    "stamps": stamps,
    "wide": wide,
    "checkpointed": lambda: replace(wide(), parallel=Parallel(activation_checkpointing="full")),
    "any": any_to_any,
}


def one(device: str = "h100", gpus: int = 1, nodes: int = 1) -> Machines:
    return Machines(device=KNOWN[device], gpus=gpus, nodes=nodes, bandwidth=50e9)


def test_fakes_count_what_numbers_count() -> None:
    """The same step with weights that have no numbers: as many FLOPs, and bytes at each moment within a percent: the
    places of a mask are found by another operation."""
    run, found = toy_run(), []
    for fake in (True, False):
        with torch.device("meta" if fake else "cpu"):
            model = build(run.model, 20, run.contrastive)
        if fake:
            without_numbers(model)
        batch = toy_batch(9)
        batch = replace(
            batch, items={n: replace(i, x=i.x.float() if n == "audio" else i.x) for n, i in batch.items.items()}
        )
        found.append(count(Objectives(model.train(), run), run, batch))
    without, real = found
    assert (without.flops, without.forward, without.model_flops) == (real.flops, real.forward, real.model_flops)
    assert without.moments.keys() == real.moments.keys() and len(real.moments) > 50
    for name, moment in real.moments.items():
        assert without.moments[name].gradients == moment.gradients
        assert without.moments[name].live == pytest.approx(moment.live, rel=0.01, abs=2_000)


def test_a_storage_counts_once_and_until_it_is_gone() -> None:
    """Planted: two tensors of 4,000 bytes of which one goes before the third comes; views are nothing, and so are
    those of weights, which were there before."""
    weight = torch.zeros(50, 50)
    with Counting() as mode:
        weight.t()[0].add_(1)
        a = torch.zeros(1000)
        b = a + 1
        view = a.view(10, 100)
        del a, view
        c = b + 1
    assert (mode.live, mode.peak) == (8_000, 8_000) and c is not None


def test_each_distinct_call_is_timed_once_and_counted_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a call takes a second. Small ones take what calling takes, as do those that refuse made-up numbers."""
    ran: list[torch.Size] = []

    def once(func: object, args: tuple[torch.Tensor, torch.Tensor], kwargs: object) -> float:
        ran.append(args[0].shape)
        if args[0].shape[0] == 4_001:
            raise RuntimeError
        return 1.0

    monkeypatch.setattr(timing, "_seconds", once)
    calls = timing.Calls()
    tables = {rows: torch.ones(rows, 16) for rows in (4_000, 4_001, 2)}
    with Counting(calls):
        for rows, times in ((4_000, 3), (4_001, 1), (2, 5)):
            for _ in range(times):
                torch.mul(tables[rows], tables[rows])
    assert calls.seconds() == pytest.approx(3 + (3 + 1 + 5) * timing.CALL_S)
    assert ran.count(torch.Size([4_000, 16])) == timing.REPEATS and torch.Size([2, 16]) not in ran


def test_a_plan_of_this_machine_takes_what_was_timed() -> None:
    """A line through both, and the optimizer's passes; of other devices it is the roofline."""
    found = planted()
    timed = replace(found, small=replace(found.small, seconds=1.0), large=replace(found.large, seconds=1.5))
    here = replace(KNOWN["h100"], name="cpu")
    assert sum(compute_seconds(timed, here, 16.0)) == pytest.approx(2.5)
    assert compute_seconds(timed, KNOWN["h100"], 16.0) == compute_seconds(found, KNOWN["h100"], 16.0)


MEASURED = """
import ctypes, gc, json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from test_plan import ASSUMED, RUNS, nowhere
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.plan.batches import made_up_batches

def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
for name in RUNS:
    run = nowhere(RUNS[name]())
    model = build(run.model, ASSUMED.vocabulary, run.contrastive, run.data.augment).train()
    model.set_grad_checkpointing(run.parallel.activation_checkpointing)
    objectives, batches = Objectives(model, run), made_up_batches(run, model, ASSUMED)
    def step(size):
        batch = batches(size)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        objectives.total(objectives(batch)).backward()
        found = resident("VmHWM") - before
        objectives.zero_grad()
        return found
    step(8)  # what is imported and prepared once
    print(json.dumps({name: step(run.data.batch_size)}), flush=True)
"""


@pytest.fixture(scope="module")
def resident() -> dict[str, int]:
    """Bytes by which a process grew in one real step of each run; its allocator gives back what is free."""
    command = [sys.executable, "-c", MEASURED, str(Path(__file__).parent)]
    environment = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, int] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_memory_is_what_a_process_takes(name: str, resident: dict[str, int]) -> None:
    """A step's activations and gradients, within 10 % of what the process grew by. Weights are none of it, nor are
    gradients of a step before."""
    run = nowhere(RUNS[name]())
    found = measure(run, ASSUMED, run.data.batch_size)
    moments = [live + gradients for live, gradients in found.large.moments.values()]
    predicted = max(found.large.forward, *moments)
    assert found.large.samples == run.data.batch_size
    assert predicted == pytest.approx(resident[name], rel=0.1), f"{predicted / resident[name]:.3f}"


def planted(run: Run | None = None) -> Measured:
    """Of n samples: 1,000 + 100 n bytes of activations, 1e9 n FLOPs in bf16 and 1e6 n bytes moved."""

    def counted(n: int) -> Counted:
        moments = {"a": Moment(1_000 + 100 * n, 0), "b": Moment(10 * n, 4_000)}
        kinds = {torch.bfloat16: 10**9 * n}
        how = {"flops": kinds, "moved": 10**6 * n, "operations": 1, "model_flops": 0.9e9 * n, "tokens": 7 * n}
        return Counted(samples=n, forward=1_000 + 100 * n, moments=moments, batch=50 * n, **how)

    sizes = Sizes(weights=8_000, learned=4_000, matrices=1_000, blocks=600, root=400)
    run = run or toy_run(optim=Optim(precision="bf16"), contrastive=())
    return Measured(run=run, small=counted(4), large=counted(8), sizes=sizes, assumptions=())


def test_a_plan_of_planted_counts() -> None:
    """Sixteen samples on one H100: counts grow along their line, products and moving take their shares of its sheet."""
    made = plan(planted(), one(), 16)
    assert made.memory["activations"] == 2_600 and made.memory["gradients"] == 4_000
    assert made.memory["weights"] == 8_000 and made.memory["moments"] == 8_000 and made.memory["data"] == 800
    assert not made.memory["whole blocks"] and not made.memory["buckets of gradients"] and made.communication_s == 0
    products = 16e9 / (PRODUCTS * 989.4e12)
    moving = (16e6 + OPTIMIZER * 4_000) / (MOVING * 3.35e12)
    assert made.step_s == pytest.approx(products + moving)
    assert made.mfu == pytest.approx(0.9 * 16e9 / made.step_s / 989.4e12)
    assert made.samples_per_s == pytest.approx(16 / made.step_s)
    assert made.tokens_per_s == pytest.approx(7 * 16 / made.step_s)
    assert made.gpu_hours == pytest.approx(made.steps * made.step_s / 3600)


def test_ranks_share_what_they_shard() -> None:
    """Of fsdp a rank of eight holds an eighth of all but its blocks; copies of HSDP hold as much as their shards say;
    ddp holds all, and buckets of its gradients."""
    ddp = memory_of(planted(), one(gpus=8), 64)
    assert ddp["weights"] == 8_000 and ddp["buckets of gradients"] == 4_000 and ddp["activations"] == 1_800

    def sharded(copies: int = 1) -> dict[str, float]:
        found = planted()
        parallel = Parallel()
        object.__setattr__(parallel, "data_parallel_replicate_degree", copies)
        small = replace(KNOWN["h100"], memory=30_000.0)  # of which weights, gradients and moments take more than half
        run = replace(found.run, parallel=parallel)
        return memory_of(replace(found, run=run), replace(one(gpus=8), device=small), 64)

    fsdp = sharded()
    assert fsdp["weights"] == 1_000 and fsdp["moments"] == 1_000 and fsdp["gradients"] == 500
    assert fsdp["whole blocks"] == 2_000 and not fsdp["buckets of gradients"]
    assert sharded(copies=4)["weights"] == 4_000


def test_auto_shards_where_training_does() -> None:
    """The same choice as a run makes, on both sides of half of a device's memory."""
    model = build(toy_run().model, 20, ())
    sizes = sizes_of(model)
    found = replace(planted(), sizes=sizes)
    for memory in (2.1, 1.9):
        room = memory * (sizes.weights + 3 * sizes.learned)
        kind, _ = chosen_strategy(Parallel(), model, 2, room)
        assert is_sharded(found, replace(KNOWN["h100"], memory=room)) == (kind == "fsdp")
    assert {chosen_strategy(Parallel(), model, 2, 2 * x * 16 * 1e4)[0] for x in (1e-3, 1e3)} == {"ddp", "fsdp"}


def test_optimizers_and_averages_hold_what_they_keep() -> None:
    """Muon one moment for a matrix of a block, AdamW two; an average of the weights as much as these."""
    muon = planted(toy_run(optim=Optim(precision="bf16", optimizer="muon", ema=Ema()), contrastive=()))
    held, plain = memory_of(muon, one(), 8), memory_of(planted(), one(), 8)
    assert plain["moments"] - held["moments"] == 1_000
    assert held["average of weights"] == 4_000 and plain["average of weights"] == 0


def test_contrasts_hold_the_embeddings_of_all_ranks_and_their_tiles() -> None:
    """Never the square: 32,768 x 32,768 scores would be four gigabytes."""
    found = planted(toy_run(optim=Optim(precision="bf16")))
    held = memory_of(found, one(gpus=8), 32_768)["contrasts"]
    width = found.run.model.embed_dim
    assert held == 2 * 32_768 * width * 4 + 3 * found.run.parallel.loss_tile_mb * 2**20


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    found, machines = planted(), one(gpus=2)
    device = replace(machines.device, memory=100_000.0)
    machines = replace(machines, device=device)
    most = largest_batch(found, machines)

    def held(batch: int) -> float:
        return sum(memory_of(found, machines, batch).values())

    assert most % 2 == 0 and held(most) <= estimate.FITS * 100_000 < held(most + 2)
    assert largest_batch(found, replace(machines, device=replace(device, memory=10.0))) == 0


def test_sending_is_as_slow_as_the_slowest_link() -> None:
    """Two nodes send over the network; a step takes as long as the longer of sending and computing."""
    found = planted()
    inside, outside = plan(found, one(gpus=8), 64), plan(found, replace(one(gpus=8, nodes=2), bandwidth=1e3), 64)
    assert inside.communication_s == pytest.approx(2 * 7 / 8 * 4_000 / 450e9)
    assert outside.communication_s == pytest.approx(2 * 7 / 8 * 4_000 / 1e3) == outside.step_s
    assert sum(outside.sent_mb.values()) == pytest.approx(7e-3)


def test_full_checkpointing_and_bf16_are_seen() -> None:
    """Blocks that compute again keep less and compute more; bf16's products are counted as such."""
    run = nowhere(wide())
    plain = measure(run, ASSUMED, 12).large
    again = measure(replace(run, parallel=Parallel(activation_checkpointing="full")), ASSUMED, 12).large
    some = measure(replace(run, parallel=Parallel(activation_checkpointing="selective")), ASSUMED, 12).large
    half = measure(replace(run, optim=replace(run.optim, precision="bf16")), ASSUMED, 12).large
    assert again.forward < 0.6 * plain.forward and again.model_flops == plain.model_flops
    assert again.forward < some.forward < plain.forward and some.model_flops == plain.model_flops
    assert 1.1 < sum(again.flops.values()) / sum(plain.flops.values()) < 1.4
    assert half.flops[torch.bfloat16] > 5 * half.flops.get(torch.float32, 0) and half.forward < plain.forward


def test_what_is_not_here_is_assumed_aloud() -> None:
    made = planned(nowhere(wide()), one(), ASSUMED)
    assert "nowhere/tokenizer.json is not here: a vocabulary of 500 tokens is assumed" in made.assumptions
    assert "samples are made up, texts of 12 to 24 tokens, sounds of 1 to 2 s" in made.assumptions
    shown = "\n".join(lines(made))
    assert all(f"assumed: {told}" in shown for told in made.assumptions) and "largest batch that fits" in shown


CONFIG = """
from mmfm.config import *

def config():
    return Run(
        name="small",
        model=Model(
            image=None,
            audio=None,
            text=TextTower(width=32, depth=1, heads=2),
            trunk=Trunk(width=32, depth=1, heads=2, kv_heads=2),
        ),
        data=Data(train=(Source(shards="nowhere.tar", modalities=("text",)),), batch_size=8),
        generative=(Generative(task=">text"),) * {tasks},
    )
"""


@pytest.mark.parametrize(
    ("tasks", "words", "told"),
    [
        (1, ("--device", "h1000"), "device 'h1000' is not known; give one of b200, h200"),
        (1, ("--gpus", "3"), "Data.batch_size=8 is no multiple of 3 GPUs"),
        (1, ("--gpus", "4", "--nodes", "3"), "--gpus 4 --nodes 3: each node must have as many GPUs"),
        (1, ("--gpus", "100"), "--gpus 100 makes no whole nodes of 8; give --nodes, or a multiple of 8"),
        (
            1,
            ("--gpus", "8", "--parallel.data-parallel-replicate-degree", "3"),
            "Parallel.data_parallel_replicate_degree=3 is no divisor of the 8 ranks",
        ),
        (1, ("--bandwidth", "0"), "--bandwidth 0 must be greater than 0"),
        (1, ("--text-tokens", "0"), "--text-tokens 0 must be greater than 0"),
        (0, (), "the run has no objective, and so no step"),
    ],
)
def test_a_mistake_is_one_line(
    tasks: int, words: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.py").write_text(CONFIG.format(tasks=tasks))
    assert main(["plan", str(tmp_path / "small.py"), *words]) == 2
    assert told in capsys.readouterr().err


def test_the_command_says_the_same_to_people_and_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.py").write_text(CONFIG.format(tasks=1))
    words = ["plan", str(tmp_path / "small.py"), "--gpus", "8", "--device", "a100", "--data.batch-size", "512"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["batch"] == 512 and made["gpus"] == 8 and made["device"] == "a100" and made["fits"]
    assert f"{made['largest_batch']:,}" in shown and "8 x a100" in shown
    assert made["memory_total"] == pytest.approx(sum(made["memory"].values()), abs=9)


def test_the_runs_own_options_and_ranks_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in training: options change the run; without --gpus its own ranks count; what a plan leaves out it says."""
    (tmp_path / "small.py").write_text(CONFIG.format(tasks=1))
    changed = ("--devices", "2", "--parallel.nodes", "2", "--parallel.strategy", "fsdp", "--parallel.micro-batch", "1")
    more = ("--parallel.data-parallel-replicate-degree", "2", "--parallel.compile")
    left_out = ("--optim.optimizer", "muon", "--data.tokens-per-batch", "9", "--json")
    assert main(["plan", str(tmp_path / "small.py"), *changed, *more, *left_out]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["gpus"], made["nodes"], made["strategy"]) == (4, 2, "fsdp, 2 copies")
    assert made["shares_of_peak"] == {"products": PRODUCTS, "bandwidth": MOVING}
    for told in ("whatever tokens_per_batch", "compiled blocks are counted", "Muon's own products are not counted"):
        assert any(told in said for said in made["assumptions"])
    assert main(["plan"]) == 2
    assert "mmfm plan needs a configuration first" in capsys.readouterr().err


def test_blocks_of_other_libraries_come_and_go_one_by_one() -> None:
    """A tower's layers are the groups that training shards them by, whatever their list is called."""
    model = toy_model()
    layers = [nn.TransformerEncoderLayer(32, 2, 512) for _ in range(3)]
    model.towers["image"] = nn.ModuleDict({"deep": nn.ModuleList(layers)})
    layer = sum(4 * parameter.numel() for parameter in layers[0].parameters())
    assert sizes_of(model.float()).blocks == 2 * layer


def test_zero_2_holds_all_weights_when_its_backward_begins() -> None:
    """And no more than two blocks' gradients, as FSDP does."""
    held = {}
    for reshard in (True, False):
        found = planted(toy_run(parallel=Parallel(strategy="fsdp", reshard_after_forward=reshard), contrastive=()))
        held[reshard] = memory_of(found, one(gpus=8), 64)["whole blocks"]
    assert held == {True: 2 * (600 + 400), False: 8_000 + 600 + 400}


def test_what_does_not_fit_is_told_with_a_remedy() -> None:
    """Planted: five samples of a rank fit, so that four at once do; of a device that the model alone fills, none."""
    found = planted(toy_run(parallel=Parallel(strategy="ddp"), contrastive=()))
    fits = memory_of(found, one(gpus=2), 10)
    small = replace(KNOWN["h100"], memory=sum(fits.values()) / estimate.FITS + 1)
    shown = "\n".join(lines(plan(found, replace(one(gpus=2), device=small), 64)))
    assert "DOES NOT FIT; try --parallel.micro-batch 4, or" in shown
    assert "assumed: products at 70% of the data sheet's FLOP/s, all else at 80% of its bandwidth" in shown
    tiny = replace(small, memory=10.0)
    assert "not even the model does" in "\n".join(lines(plan(found, replace(one(gpus=2), device=tiny), 64)))


def test_a_codecs_plan_has_no_mfu(capsys: pytest.CaptureFixture[str]) -> None:
    """Its FLOPs are not counted, and 0 % would say that they were."""
    assert main(["plan", str(CONFIGS / "codec_image.py"), "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    assert "MFU" not in shown and "real tokens" not in shown and "samples/s" in shown
