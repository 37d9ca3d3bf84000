"""Any number of ranks against one process, in float64: losses, gradients and positives are equal, whatever each rank's
share holds. Ranks are threads here, many mixtures of them, and processes under DDP, a few.
"""

import random
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from ranks import on_ranks
from torch.nn.parallel import DistributedDataParallel
from toys import PAIRS, WRITES, pick, random_batch, toy_config, toy_model, toy_run

from mmfm.config import Contrastive, Generative, ImageCodec, Reconstruction, Run
from mmfm.data.batch import NO_TEXT, Batch, Items
from mmfm.models.model import UnifiedModel
from mmfm.objectives.joint import Objectives, positive_group_ids
from mmfm.runtime.distributed import Collective, ProcessGroup, SingleProcess, joined_if_many

SIZE = 16
CODEC = ImageCodec(height_px=8, width_px=16, channels=1, patch_px=4, levels=(3, 3), width=8, depth=1)
SIGMOID = tuple(Contrastive(pair=item.pair, loss="sigmoid") for item in PAIRS)
FILLED = (
    Generative(task="text~", mask_ratio=(0.2, 0.9)),
    Generative(task="text>image~"),
    Generative(task="text>image", condition_dropout=0.3),
)
MIXTURES = range(6)
ROWS = list(range(SIZE))
SHARES = {
    "two in order": [ROWS[:8], ROWS[8:]],
    "two, one with little": [ROWS[:13], ROWS[13:]],
    "four in order": [ROWS[:4], ROWS[4:8], ROWS[8:12], ROWS[12:]],
    "four, two with nothing": [ROWS[:9], [], ROWS[9:], []],
}  # for processes


def learning(number: int) -> Run:
    """Softmax in one mixture and sigmoid in the next; what is written, filled and reconstructed in all."""
    parts = {"contrastive": (PAIRS, SIGMOID)[number % 2], "generative": (*WRITES, *FILLED)}
    model = toy_config(image_codec=CODEC)
    return toy_run(model=model, reconstruction=(Reconstruction(modality="image", weight=0.3),), **parts)


def model_of(number: int) -> UnifiedModel:
    return toy_model(contrast=learning(number).contrastive, image_codec=CODEC)


def dealt(number: int, ranks: int) -> list[list[int]]:
    """Rows in any order, in parts of any size, none included."""
    draw = random.Random(10 * number + ranks)
    rows, ends = draw.sample(range(SIZE), SIZE), sorted(draw.randrange(SIZE + 1) for _ in range(ranks - 1))
    return [rows[a:b] for a, b in zip([0, *ends], [*ends, SIZE], strict=True)]


def learned(objectives: torch.nn.Module, owner: Objectives, batch: Batch) -> tuple[dict, dict]:
    """Losses over all ranks, and this rank's gradients: those of all, where the module is DDP."""
    losses = objectives(batch)
    owner.total(losses).backward()
    totals = {name: owner.ranks.all_reduce_sum(loss) for name, loss in losses.items()}
    return totals, {name: p.grad.clone() for name, p in owner.named_parameters() if p.grad is not None}


def positives(batch: Batch, ranks: Collective) -> torch.Tensor:
    """Which rows of all ranks each of this rank's rows takes for its own."""
    same = positive_group_ids(batch, ranks)
    return same[:, None] == ranks.all_gather(same)[None, :]


def averaged(gradients: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As DDP does: a rank without a gradient counts as zero."""
    names = {name for own in gradients for name in own}
    return {name: sum(own[name] for own in gradients if name in own) / len(gradients) for name in names}


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in found.keys() | expected.keys():
        zero = torch.zeros_like(found[name] if name in found else expected[name])
        a, b = found.get(name, zero), expected.get(name, zero)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("number", MIXTURES)
def test_any_mixture_on_any_ranks_is_one_process(number: int, ranks: int) -> None:
    """Each objective's loss, every parameter's gradient and every row's positives are those of the whole batch."""
    shares, whole = dealt(number, ranks), random_batch(SIZE, seed=number)
    whole = pick(whole, [row for rows in shares for row in rows])
    owner = Objectives(model_of(number), learning(number))
    losses, gradients = learned(owner, owner, whole)

    models = [model_of(number) for _ in range(ranks)]  # threads would draw them from one generator

    def work(joined: Any) -> Any:
        batch = pick(random_batch(SIZE, seed=number), shares[joined.rank])
        mine = Objectives(models[joined.rank], learning(number), joined)
        return *learned(mine, mine, batch), positives(batch, joined)

    found = on_ranks(ranks, work)
    for own in found:
        if isinstance(own, Exception):
            raise own
        compare(own[0], losses)
    compare(averaged([own[1] for own in found]), gradients)
    assert torch.equal(torch.cat([own[2] for own in found]), positives(whole, SingleProcess()))


def test_the_mixtures_have_what_ranks_could_get_wrong() -> None:
    """Else the test above would not test it: several rows without a text on several ranks, pairs without a text among
    them, texts that repeat across ranks, a rank with nothing, and one without an image or sound."""
    seen = set()
    for number in MIXTURES:
        batch = random_batch(SIZE, seed=number)
        images, sounds = (set(batch.items[name].rows.tolist()) for name in ("image", "audio"))
        for ranks in (2, 4):
            shares = dealt(number, ranks)
            bare = [[row for row in rows if batch.positive_ids[row] == NO_TEXT] for rows in shares]
            seen |= {"bare"} if sum(len(rows) > 1 for rows in bare) > 1 else set()
            seen |= {"pairs"} if sum(bool({*rows} & images & sounds) for rows in bare) > 1 else set()
            seen |= {"nothing"} if [] in shares else set()
            seen |= {"lacks"} if any(rows and not {*rows} & images for rows in shares) else set()
            texts = [{int(batch.positive_ids[row]) for row in rows} - {NO_TEXT} for rows in shares]
            seen |= {"repeats"} if any(texts[0] & other for other in texts[1:]) else set()
    assert seen == {"bare", "pairs", "nothing", "lacks", "repeats"}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_aligned_embeddings_without_texts_cost_nothing(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and sounds whose embeddings agree, each pair apart from all others, and no text: on any number of ranks
    the loss is 0, as no row takes another one of its own place on another rank for its own."""
    each, run = 3, toy_run(contrastive=(Contrastive(pair=("image", "audio")),), generative=())
    place = torch.arange(each)
    items = {
        "image": Items(
            x=torch.zeros(each, 1, 8, 16, dtype=torch.uint8), keep=torch.ones(each, 1, dtype=torch.bool), rows=place
        ),
        "audio": Items(x=torch.zeros(each, 2_400), keep=torch.ones(each, 2_400, dtype=torch.bool), rows=place),
    }
    batch = Batch(size=each, items=items, positive_ids=torch.full((each,), NO_TEXT))

    models = [toy_model(contrast=run.contrastive) for _ in range(ranks)]

    def loss(joined: Any) -> float:
        owner = Objectives(models[joined.rank], run, joined)
        with torch.no_grad():
            owner.model.log_scales["image-audio"].fill_(4.7)
        vectors = F.one_hot(joined.rank * each + place, each * ranks).double()
        owner._embedded = lambda *_: (vectors, place)
        return float(joined.all_reduce_sum(owner(batch)["image-audio"]))

    assert on_ranks(ranks, loss) == [pytest.approx(0.0, abs=1e-6)] * ranks


def scattered(ranks: Collective) -> torch.Tensor:
    """How far each reduce-scatter is from a part of the all-reduce, with as many rows and with any number of them."""
    far = []
    for counts in ([2, 2, 2, 2], [1, 2, 3, 4], [0, 3, 0, 1], [0, 0, 0, 0]):
        x = torch.randn(sum(counts), 3, generator=torch.Generator().manual_seed(ranks.rank), dtype=torch.float64)
        expected = ranks.all_reduce_sum(x).split(counts)[ranks.rank]
        found = ranks.reduce_scatter_sum(x, counts)
        assert found.shape == expected.shape
        far.append((found - expected).abs().sum())
    return torch.stack(far)


def one_rank(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    results = {}
    pair = dist.new_group([0, 1])
    for number, (name, shares) in enumerate(SHARES.items()):
        if rank >= len(shares):
            continue
        group = pair if len(shares) == 2 else None
        owner = Objectives(model_of(number), learning(number), ProcessGroup(pair) if group else joined_if_many())
        wrapped = DistributedDataParallel(owner, find_unused_parameters=True, process_group=group)
        results[name] = learned(wrapped, owner, pick(random_batch(SIZE, seed=number), shares[rank]))
    results["scattered"] = {"differences": scattered(joined_if_many())}
    torch.save(results, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.set_forkserver_preload(["mmfm.objectives.joint", "torch.distributed"])
    mp.start_processes(one_rank, args=(port, out), nprocs=4, start_method="forkserver")
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(4)]


def test_a_rank_gets_its_part_of_a_sum(processes: list[dict]) -> None:
    for rank in processes:
        assert rank["scattered"]["differences"].max() < 1e-14


@pytest.mark.parametrize("name", SHARES)
def test_processes_under_ddp_equal_one(processes: list[dict], name: str) -> None:
    """Each objective's loss, and after DDP's averaging every parameter's gradient, is that of the whole batch."""
    number, shares = list(SHARES).index(name), SHARES[name]
    owner = Objectives(model_of(number), learning(number))
    whole = pick(random_batch(SIZE, seed=number), [row for rows in shares for row in rows])
    losses, gradients = learned(owner, owner, whole)
    for rank in processes[: len(shares)]:
        compare(rank[name][0], losses)
        compare(rank[name][1], gradients)
