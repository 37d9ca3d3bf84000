"""Ranks as processes that train a toy with sharded weights; what each case gives is kept by its name."""

import socket
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_distributed import CODEC, learning
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from toys import pick, random_batch, toy_chats, toy_model

from mmfm.config import Chat, ChatTemplate, ParamGroup, Run
from mmfm.data.batch import Batch
from mmfm.models.model import UnifiedModel
from mmfm.objectives import joint
from mmfm.objectives.grad_cache import grad_cache_backward
from mmfm.objectives.joint import Objectives
from mmfm.runtime.distributed import full_tensor, joined_if_many
from mmfm.training.optimizer import adamw
from mmfm.training.optimizer import learning as learns
from mmfm.training.sharding import hold_rows, mesh_of, shard, whole

SIZE, STEPS = 12, 5
RUN = learning(0)
RESTING = tuple(ParamGroup(pattern=f"towers.{name}.*", lr_scale=0.0) for name in ("image", "text"))
MUON = replace(RUN, optim=replace(RUN.optim, optimizer="muon"))
NO_TOWERS: dict[str, Any] = {"image": None, "audio": None, "text": None}
ONLY_CODEC = replace(RUN, contrastive=(), generative=())
UNASKED = replace(RUN, contrastive=RUN.contrastive[:1], generative=())  # much is there that no objective reaches
CHAT = replace(RUN, chat=Chat(per="turn"), model=replace(RUN.model, chat=ChatTemplate()))
TALK = replace(CHAT, contrastive=(), generative=())  # conversations alone, whose towers and heads are the model's
LOCKED = replace(RUN, optim=replace(RUN.optim, param_groups=RESTING))
Found = tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def model_of(run: Run, dropout: float = 0.2) -> UnifiedModel:
    towers = {} if run.contrastive or run.chat else NO_TOWERS
    model = toy_model(contrast=run.contrastive, image_codec=CODEC, dropout=dropout, **towers)
    model.lock([name for name, factor in learns(model, run).factor.items() if not factor])
    return model.train()


def batch_of(step: int, rank: int, ranks: int) -> Batch:
    """This rank's share. In every second step samples with pictures are those of the first ranks, so that the last ones
    have none; in step 2 the first rank has all samples; in the last step no rank has a sound."""
    every, rows = random_batch(SIZE, seed=step), list(range(SIZE))
    if step == STEPS - 1:
        every = replace(every, items={name: items for name, items in every.items.items() if name != "audio"})
    every = toy_chats(every, step)
    seen = set(every.items["image"].rows.tolist())
    if step % 2:
        lacking = [row for row in rows if row not in seen]
        rows = [row for row in rows if row in seen][: len(lacking)] + lacking
    each = len(rows) if step == 2 else -(-len(rows) // ranks)
    return pick(every, rows[rank * each : (rank + 1) * each])


def train(owner: Objectives, run: Run, rank: int, ranks: int, parts: int = 0, after: Any = None) -> Found:
    """Losses over all ranks of each step, with clipping; the weights at the end. after: called before the first step
    and after each."""
    optimizer, losses_of = adamw(owner, run.optim), []
    if after is not None:  # before any forward too, as a run that goes on is scored at once
        after(owner, batch_of(0, rank, ranks), rank)
    for step in range(STEPS):
        batch = batch_of(step, rank, ranks)
        optimizer.zero_grad()
        if parts:
            losses = grad_cache_backward(owner, batch, parts)
        else:
            losses = owner(batch)
            owner.total(losses).backward()
        norm = torch.nn.utils.clip_grad_norm_(owner.parameters(), 0.5)
        optimizer.step()
        owner.model.clamp_scales()
        if after is not None:
            after(owner, batch, rank)
        numbers = {name: owner.ranks.all_reduce_sum(loss) for name, loss in losses.items()}
        numbers |= {f"scale {name}": owner.model.scale(name).detach() for name in owner.model.log_scales}
        losses_of.append(numbers | {"norm": torch.tensor(float(norm), dtype=torch.float64)})
    return losses_of, {name: full_tensor(p).detach().clone() for name, p in owner.named_parameters()}


def sharded(run: Run, degree: int = 1, reshard: bool = True, dropout: float = 0.2) -> Objectives:
    owner = Objectives(model_of(run, dropout), run, joined_if_many())
    shard(owner, mesh_of("cpu", dist.get_world_size(), degree), reshard)
    return owner


def of_ranks(run: Run = RUN, degree: int = 1, reshard: bool = True, **how: Any) -> Found:
    return train(sharded(run, degree, reshard), run, dist.get_rank(), dist.get_world_size(), **how)


def unequal_calls(owner: Objectives, batch: Batch, rank: int) -> None:
    """As evaluation does it: without gradient, one rank once and another three times, and parts of the model alone."""
    with whole(owner), torch.no_grad():
        for _ in range(1 + 2 * rank):
            for name, items in batch.items.items():
                owner.model.tokens(name, items)
            owner.model.logits(owner.model.embedding(torch.arange(3)))


def checkpointed(how: str) -> Found:
    owner = sharded(RUN)
    owner.model.set_grad_checkpointing(how)  # type: ignore[arg-type]
    return train(owner, RUN, dist.get_rank(), dist.get_world_size())


def compiled() -> Found:
    """The trunk's blocks, as a compiler traces them between the gathering of their weights and their release."""
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    owner = sharded(RUN)
    counter = CompileCounterWithBackend("eager")
    for block in owner.model.trunk.blocks:
        block.set_compile(counter)
    found = train(owner, RUN, dist.get_rank(), dist.get_world_size())
    assert counter.frame_count >= 2
    return found


class Collectives(TorchDispatchMode):
    """Counts them by name; torch's CommDebugMode cannot be where a module is entered by another method than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func._opname.strip("_")] += 1
        return func(*args, **(kwargs or {}))


def collectives(reshard: bool = True, parts: int = 0) -> dict[str, int]:
    """Of one step, by name: those of weights and gradients, and ours. parts: samples of a micro-batch."""
    owner = sharded(RUN, reshard=reshard)
    batch = batch_of(0, dist.get_rank(), dist.get_world_size())
    owner.total(owner(batch)).backward()  # what comes lazily
    with Collectives() as counted:
        if parts:
            grad_cache_backward(owner, batch, parts)
        else:
            owner.total(owner(batch)).backward()
    return dict(counted.counts)


def dtypes_under_autocast() -> list[str]:
    """Of what reaches each contrast and what each loss is, in bf16 beside fp32 weights."""
    owner, seen = sharded(RUN).float(), []
    contrast = dict(joint.CONTRAST)

    def spied(name: str) -> Callable[..., Any]:
        def call(a: torch.Tensor, b: torch.Tensor, same: Any, scale: torch.Tensor, *more: Any) -> Any:
            seen.extend(str(x.dtype) for x in (a, b, scale))
            return contrast[name](a, b, same, scale, *more)

        return call

    joint.CONTRAST.update({name: spied(name) for name in contrast})
    with torch.autocast("cpu", torch.bfloat16):
        losses = owner(batch_of(1, dist.get_rank(), dist.get_world_size()))
        owner.total(losses).backward()
    joint.CONTRAST.update(contrast)
    assert all(p.grad is None or bool(full_tensor(p.grad).isfinite().all()) for p in owner.parameters())
    return [*seen, *(str(loss.dtype) for loss in losses.values())]


def held_rows() -> list[torch.Tensor]:
    """Gradients of a table some of whose rows are held, and of one that is whole, where they are not a number too."""
    owner = sharded(RUN)
    owner.total(owner(batch_of(0, dist.get_rank(), dist.get_world_size()))).backward()
    table = owner.model.embedding.weight
    assert table.grad is not None
    before = full_tensor(table.grad).clone()
    table.grad.to_local()[:] = torch.where(table.grad.to_local().abs() > 0, table.grad.to_local(), torch.nan)
    hold_rows(table, range(1, 7))
    return [before, full_tensor(table.grad)]


def one_rank(rank: int, ranks: int, port: int, out: Path, cases: dict[str, tuple[Callable[..., Any], dict]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.save({name: call(**how) for name, (call, how) in cases.items()}, out / f"{rank}.pt")
    dist.destroy_process_group()


def start(ranks: int, out: Path, cases: dict[str, tuple[Callable[..., Any], dict]]) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.set_forkserver_preload(["mmfm.training.sharding"])
    mp.start_processes(one_rank, args=(ranks, port, out, cases), nprocs=ranks, start_method="forkserver")
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def alone(run: Run = RUN) -> Found:
    """What one process makes of the whole batches. Shares in the order of `batch_of` are the same samples."""
    return train(Objectives(model_of(run), run), run, 0, 1)


def check(found: Found, expected: Found, bound: float = 1e-10) -> None:
    for mine, theirs in zip(found[0], expected[0], strict=True):
        for key in theirs:
            torch.testing.assert_close(mine[key], theirs[key].detach(), rtol=1e-9, atol=1e-10)
    worst = {key: float((found[1][key] - x).abs().max()) for key, x in expected[1].items()}
    assert max(worst.values()) < bound, worst
