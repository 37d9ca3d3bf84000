"""From a run's configuration to a trained model: data, model, Trainer, and a folder from which it can always go on.

runs/NAME/run.json  metrics.jsonl  skipped.jsonl  tensorboard/  checkpoints/step-N/
"""

import contextlib
import json
import logging
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy

from mmfm.config import Run, require
from mmfm.config.serialization import from_json, to_json
from mmfm.config.task import parse_writing
from mmfm.data.waiting import StoppedWaiting
from mmfm.inference.base import made_of, restore
from mmfm.models.base_weights import LeftOut, Prints, missing, prints, verify
from mmfm.models.checkpoint import (
    BASE,
    MANIFEST,
    Checkpoint,
    folder_of,
    read_tokenizer,
)
from mmfm.models.codecs.fingerprint import fingerprint
from mmfm.models.model import UnifiedModel, build
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.devices import AUTOCAST, slow_products
from mmfm.runtime.distributed import Collective, SingleProcess, agree, each, from_first, nothing
from mmfm.runtime.files import locked
from mmfm.runtime.foreign import refuse_foreign, refuse_unsafe
from mmfm.runtime.launch import STARTED, Launch, again, first_process, launched
from mmfm.runtime.machine import RESUME, cores
from mmfm.runtime.process import TRY_AGAIN, Signals, Stopped
from mmfm.runtime.rendezvous import assembled, device_of_rank
from mmfm.training.callbacks import (
    LOG_EVERY_STEPS,
    CheckpointSaver,
    MetricsLogger,
    PeriodicEval,
    ProgressBar,
    StopConsensus,
)
from mmfm.training.initialize import adopt, begin, check_augment, prepare
from mmfm.training.metrics_file import console
from mmfm.training.module import FolderCheckpoints, JointModule, ScaledPrecision, StreamData, position_in
from mmfm.training.preflight import check_compiler, check_place
from mmfm.training.profiler import StepProfiler, check_window
from mmfm.training.resume import clear_for_start, open_checkpoint, resume_step
from mmfm.training.sharding import chosen_strategy, memory_of_rank
from mmfm.training.strategy import DDP, Met, Sharded, UnwrappedDDP
from mmfm.training.teachers import load_teachers

PRECISION: dict[str, Literal["32-true", "bf16-mixed"] | None] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": None}
ALONE, CPU = SingleProcess(), torch.device("cpu")


def train(run: Run, *, resume: bool = False, force: bool = False, look: Callable[[], object] = nothing) -> Path:
    """Train and return the run's folder. A finished run is kept as it is; `resume` continues, `force` starts anew.

    All ranks train the same, or none does: those of a launcher, or `run.devices` that are started here. look: what each
    rank of a launcher asks of the run before it begins, as others may have done for one that is started here.
    Raises UserError for mistakes, Stopped when the machine asked it to end, KeyboardInterrupt when a person did.
    """
    refuse_unsafe()
    refuse_foreign(run.folder)
    check_place(run.folder)
    launch = launched()
    run = of_launch(run, launch)
    gpus = run.accelerator != "cpu" and torch.cuda.is_available()
    how = {"option": "--devices", "remedy": RESUME, "gpus": gpus, "own": True}
    with Signals() as signals, contextlib.ExitStack() as held:

        def begun() -> int | None:
            held.enter_context(locked(run.folder))  # one lock for all ranks: that of the first
            return resume_step(run, resume, force)

        def earlier(damaged: dict[int, str]) -> int | None:
            return resume_step(run, resume, force, damaged)

        own = [begun()] if launch is None else []  # before others are started
        if own and _finished(run, own[0]):
            return run.folder
        with assembled(run.ranks, again(), heard=signals.obey, **how) as ranks:
            each(ranks, nothing if launch is None or STARTED in os.environ else look)
            start = from_first(ranks, lambda: own.pop() if own else begun())
            finished = _finished(run, start)
            start, opened = (start, None) if finished else open_checkpoint(run, start, ranks, earlier)
            ending = None if finished else _fit(run, start, signals, ranks, opened)
    if ending is not None and ranks.rank == 0:  # what all ranks know is said by the first, when all have left
        raise ending
    if ending is not None:
        raise SystemExit(status_of(ending))
    return run.folder


def _finished(run: Run, start: int | None) -> bool:
    """Whether nothing is left to be trained, which the first rank says."""
    finished = start is not None and start >= run.optim.steps
    if finished and first_process():
        told = f"{run.folder} is trained to step {start}; kept (--force trains it anew)"
        console.print(told, soft_wrap=True)
    return finished


def of_launch(run: Run, launch: Launch | None) -> Run:
    """The run on as many ranks as were launched, which devices=1 and nodes=1 leave open."""
    nodes = run.parallel.nodes
    if launch is None:
        told = f"parallel.nodes={nodes}, but nothing started ranks on several machines"
        require(nodes == 1, f"{told}; start the command on each by srun, or by torchrun --nnodes {nodes}")
        return run
    told = f"parallel.nodes={nodes}, but {launch.by} started ranks on {launch.nodes}"
    require(nodes in (1, launch.nodes) or launch.nodes == 1, f"{told}; leave nodes out, or start on that many")
    known = max(nodes, launch.nodes)
    each, rest = divmod(launch.size, known)
    if not rest and (run.devices, nodes) == (each, known):
        return run
    told = f"devices={run.devices}, but {launch.by} started {launch.size} ranks"
    require(not rest and run.devices in (1, each, launch.size), f"{told}; give --devices {each}, or start that many")
    if launch.rank == 0:
        console.print(f"one run on the {launch.size} ranks that {launch.by} started", soft_wrap=True, highlight=False)
    return replace(run, devices=each, parallel=replace(run.parallel, nodes=known))


def status_of(ending: BaseException) -> int:
    """The exit status of a rank that leaves the words to the first."""
    return 130 if isinstance(ending, KeyboardInterrupt) else TRY_AGAIN if isinstance(ending, Stopped) else 2


def _fit(
    run: Run, start: int | None, signals: Signals, ranks: Collective, opened: Checkpoint | None
) -> BaseException | None:
    """Trains from this step on. Gives what ended it on all ranks, where that was not the last step."""
    _quiet()
    torch.set_num_threads(min(run.threads, cores()))
    run, module, data, files, device = each(ranks, lambda: _parts(run, start, opened, ranks))
    agree(ranks, _facts(run, start, data, device), "all ranks must be given the same")
    each(ranks, nothing if ranks.rank else lambda: clear_for_start(run, start, position_in(opened, run)))
    slow = slow_products(AUTOCAST.get(run.optim.precision, torch.float32), device)
    if slow and ranks.rank == 0:
        console.print(f"training {run.name}: {slow}; --optim.precision fp32 is faster", soft_wrap=True, highlight=False)
    metrics, agreed = MetricsLogger(run), StopConsensus(run, data, signals)
    callbacks = [
        StepProfiler(run),
        metrics,
        agreed,
        *(item.build(run) for item in run.callbacks),
        PeriodicEval(run, data.tokenizer, agreed),
        CheckpointSaver(run, files, agreed),
        ProgressBar(run, metrics),
    ]
    strategy = each(ranks, lambda: _strategy(run, module, ranks, device))
    trainer = _trainer(run, start, callbacks, files, ranks, device, strategy)
    path = None if start is None else str(folder_of(run.folder, start))
    data.open().asked = lambda: bool(signals.asked)
    try:
        trainer.fit(module, data, ckpt_path=path, weights_only=True)
    except StoppedWaiting as why:
        if SIGINT in signals.asked:
            raise KeyboardInterrupt from why
        raise
    return _ending(run, trainer, module, agreed)


def _parts(
    run: Run, start: int | None, opened: Checkpoint | None, ranks: Collective
) -> tuple[Run, JointModule, StreamData, FolderCheckpoints, torch.device]:
    """All that a rank trains with, before anything is written: what is wrong with it is said first."""
    device = device_of_rank(run.accelerator)
    check_window(run, start or 0)
    check_compiler(run)
    torch.manual_seed(run.seed)
    run, tokenizer, model, before = _model(run, opened)
    run, teachers = load_teachers(run, tokenizer)
    data = StreamData(run, tokenizer, fingerprints(run, model))
    data.open()
    module = JointModule(run, model, teachers)
    held = module.learning.held
    left_out = None if before is None else LeftOut(model, model.vocabulary, run, before, made_of(run), held)
    if left_out is not None and not left_out.names:
        left_out = None
    return run, module, data, FolderCheckpoints(run, tokenizer, ranks, opened, left_out), device


def _facts(run: Run, start: int | None, data: StreamData, device: torch.device) -> dict[str, Any]:
    """What all ranks must know alike before the first step."""
    where = None if start is None else folder_of(run.folder, start) / MANIFEST
    return {
        "the configuration": json.loads(to_json(run)),
        "the step to go on from": start,
        "the checkpoint": None if where is None else f"{zlib.crc32(where.read_bytes()):08x}",
        "the data": data.open().fingerprint(),
        "the tokenizer": f"{zlib.crc32(data.tokenizer.to_json().encode()):08x}",
        "the kind of device": device.type,
        "the version of lightning": L.__version__,
    }


def fingerprints(run: Run, model: UnifiedModel) -> dict[str, str]:
    """Of the codecs that are only used: what one of them has stored need not be made again."""
    wanted = {parse_writing(item.task).target for item in run.generative} - {
        item.modality for item in run.reconstruction
    }
    return {name: fingerprint(model.codecs[name], cfg) for name, cfg in run.model.codecs.items() if name in wanted}


def _model(run: Run, opened: Checkpoint | None) -> tuple[Run, Tokenizer, UnifiedModel, Prints | None]:
    """The run with its towers' blueprints, its tokenizer, and its model before the first step; a run that goes on
    asks no source: its weights are those of its checkpoint. But those under adapters, which are asked for again, and
    of such a model what its parameters were before any were loaded."""
    if opened is None:
        prepared = prepare(run)
        model = build(prepared.run.model, prepared.tokenizer.size, run.contrastive, run.data.augment)
        before = prints(model) if run.model.adapters else None
        for line in begin(model, prepared):
            console.print(f"training {run.name}: {line}", soft_wrap=True, highlight=False, markup=False)
        return prepared.run, prepared.tokenizer, model, before
    where, files = opened.folder, opened.files
    run = adopt(run, from_json(files["run.json"].decode(), f"{where}/run.json"))
    check_augment(run)
    tokenizer = read_tokenizer(files, run.model, where).limited(run)
    model = build(run.model, tokenizer.size, run.contrastive, run.data.augment)
    before = prints(model) if run.model.adapters else None
    if BASE in files:
        run = replace(run, start=from_json(files["run.json"].decode(), f"{where}/run.json").start)
        bases = restore(model, run, files, where)
        verify(model, model.vocabulary, missing(model, opened.weights.parts, bases, str(where)), bases, str(where))
    return run, tokenizer, model, before


def _ending(run: Run, trainer: L.Trainer, module: JointModule, agreed: StopConsensus) -> BaseException | None:
    if module.failure is not None:
        return module.failure
    if agreed.stop == SIGINT:
        return KeyboardInterrupt()
    if agreed.stop is not None and trainer.global_step < run.optim.steps:
        return Stopped(f"stopped at step {trainer.global_step}, as asked, and saved; --resume continues")
    return None


def _quiet() -> None:
    """Lightning's tips and hardware banner; what matters is raised or logged by us."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # the first steps of fp16 overflow
    warnings.filterwarnings(
        "ignore", message=".*This DataLoader will create .* worker processes.*"
    )  # the doctor says it
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # those that are locked
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")  # of FSDP; nothing is changed in place
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's use of torch
    warnings.filterwarnings(
        "ignore", message=".*your dataloader is not resumable.*"
    )  # it is: StreamData keeps its place


def _strategy(run: Run, module: JointModule, ranks: Collective, device: torch.device) -> Strategy | str:
    """How ranks share the model, which is said in the opening line."""
    memory = memory_of_rank(device, run.devices)
    kind, told = chosen_strategy(run.parallel, module.objectives.model, ranks.size, memory)
    if ranks.size == 1:
        return "auto"
    module.strategy_told = told
    if kind == "fsdp":
        told = 'optim.precision="fp16" scales each loss by what one rank finds, which sharded weights do not bear'
        require(run.optim.precision != "fp16", f'{told}; take "bf16", or parallel.strategy="ddp"')
        return Sharded(ranks.size, run.parallel)
    # A rank may hold no sample of a modality, so some parameters have no gradient there. And without this DDP forms
    # its buckets anew after the first step: then three or more ranks resume to other bits.
    return UnwrappedDDP() if run.parallel.micro_batch else DDP(find_unused_parameters=True)


def _trainer(
    run: Run,
    start: int | None,
    callbacks: Sequence[L.Callback],
    files: FolderCheckpoints,
    ranks: Collective = ALONE,
    device: torch.device = CPU,
    strategy: Strategy | str = "auto",
) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.type == "cpu" else [device.index],
        strategy=strategy,
        precision=PRECISION[run.optim.precision],
        max_steps=run.optim.steps,
        max_epochs=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=min(LOG_EVERY_STEPS, run.optim.steps),
        logger=[
            TensorBoardLogger(
                save_dir=run.folder, name="", version="tensorboard", purge_step=None if start is None else start + 1
            ),
            *(item.build(run) for item in run.loggers if ranks.rank == 0),
        ],
        default_root_dir=run.folder,
        callbacks=list(callbacks),
        plugins=[files, Met(ranks), *([ScaledPrecision(device.type)] if run.optim.precision == "fp16" else [])],
        use_distributed_sampler=False,
    )
