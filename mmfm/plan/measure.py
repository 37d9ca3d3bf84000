"""What one step of a run does, counted at two batch sizes: all that a plan extrapolates from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmfm.config import KnownCodec, Run, Tower, UserError, require
from mmfm.models.execution import blocks_of
from mmfm.models.flops import step_flops
from mmfm.models.model import UnifiedModel, build
from mmfm.objectives.joint import Objectives
from mmfm.plan.batches import Assumed, Batches, made_up_batches, own_batches, whole_samples
from mmfm.plan.counting import Counting, Moment, without_numbers
from mmfm.plan.timing import Calls
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer
from mmfm.runtime.devices import autocast
from mmfm.training.initialize import prepare
from mmfm.training.optimizer import set_learning

SMALL = 50_000_000  # parameters up to which a step is counted at the size that it will have
MOST, OF_LARGE = 256, 16  # samples of a counted step, and of one of a large model


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A step of `samples`: bytes that live at the end of its forward, and up to each parameter's gradient; FLOPs of
    its products by precision; bytes that other operations move, and how many there are; the model's own FLOPs, real
    tokens of its trunk, bytes of its batch, and seconds on this machine, where it was timed."""

    samples: int
    forward: int
    moments: Mapping[str, Moment]
    flops: Mapping[torch.dtype, int]
    moved: int
    operations: int
    model_flops: float
    tokens: int
    batch: int
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of the model: all weights, those that learn, those that learn within blocks as matrices, the two largest
    blocks, and what is in no block."""

    weights: int
    learned: int
    matrices: int
    blocks: int
    root: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Two steps, the sizes of the model, and what had to be assumed, in words."""

    run: Run
    small: Counted
    large: Counted
    sizes: Sizes
    assumptions: tuple[str, ...]


def measure(run: Run, assumed: Assumed, own: int, timed: bool = False) -> Measured:
    """own: samples of a rank that go through the model at once. timed: whether operations are timed on this machine.
    UserError where the run cannot be planned."""
    run, tokenizer, said = settled(run, assumed)
    text_size = assumed.vocabulary if tokenizer is None else tokenizer.size
    with torch.device("meta"):
        model = build(run.model, text_size, run.contrastive, run.data.augment)
    set_learning(model, run)
    model.set_grad_checkpointing(run.parallel.activation_checkpointing)
    without_numbers(model)
    batches = _batches(run, tokenizer, model, assumed, said)
    said += left_out(run)
    large = min(own, MOST if _size(model.parameters()) <= SMALL * 4 else OF_LARGE)
    first, second = whole_samples(run, max(1, large // 2)), whole_samples(run, large)
    second = second if second > first else whole_samples(run, first + 1)
    objectives = Objectives(model.train(), run)
    counted = [count(objectives, run, batches(size), timed) for size in (first, second)]
    return Measured(run=run, small=counted[0], large=counted[1], sizes=sizes_of(model), assumptions=tuple(said))


def count(objectives: Objectives, run: Run, batch: Any, timed: bool = False) -> Counted:
    """One forward and backward."""
    calls = Calls() if timed else None
    model, mode = objectives.model, Counting(calls)
    model.read_counts.drain(torch.device("cpu"))
    precision = run.optim.precision
    with mode:
        hooks = mode.watch(objectives)
        with autocast("bf16" if precision == "fp16" else precision, torch.device("cpu")):  # of one size
            loss = objectives.total(objectives(batch))
        forward, mode.since = mode.peak, mode.live
        loss.backward()
    for hook in hooks:
        hook.remove()
    counts, embeddings = model.read_counts.named(model.read_counts.drain(torch.device("cpu")))
    for parameter in objectives.parameters():
        parameter.grad = None
    return Counted(
        samples=batch.size,
        forward=forward,
        moments=mode.moments,
        flops=dict(mode.flops),
        moved=mode.moved,
        operations=mode.operations,
        model_flops=step_flops(model, counts, embeddings),
        tokens=counts["trunk"]["tokens"],
        batch=sum(x.numel() * x.element_size() for item in batch.items.values() for x in (item.x, item.keep)),
        seconds=0.0 if calls is None else calls.seconds(),
    )


def settled(run: Run, assumed: Assumed) -> tuple[Run, Tokenizer | None, list[str]]:
    """The run with architectures and no weights, its tokenizer if it is here, and what is said of that."""
    said: list[str] = []
    model, places = run.model, assumed.architectures
    codecs = {f"{name}_codec": _alone(part, places) for name, part in model.codecs.items()}
    towers = {name: _alone(part, places) for name, part in model.towers.items() if isinstance(part, Tower)}
    run = replace(run, start="", model=replace(model, **codecs, **towers))
    try:
        load_tokenizer(run.model.tokenizer)
    except UserError:
        said.append(f"{run.model.tokenizer} is not here: a vocabulary of {assumed.vocabulary:,} tokens is assumed")
        prepared = prepare(replace(run, model=replace(run.model, tokenizer="bytes")))
        return prepared.run, None, said
    prepared = prepare(run)
    return prepared.run, prepared.tokenizer, said


def _alone(part: Any, places: str) -> Any:
    """A part from elsewhere by its architecture alone, which may lie in a folder of these."""
    if not isinstance(part, Tower | KnownCodec):
        return replace(part, weights="")
    folder = Path(places) / part.source.removeprefix("hf:")
    here = bool(places) and part.source.startswith("hf:") and folder.is_dir()
    kept = {"feature_cache_dir": ""} if isinstance(part, Tower) else {}
    return replace(part, source=str(folder) if here else part.source, weights="random", **kept)


def left_out(run: Run) -> list[str]:
    """What a plan knows nothing of, in words."""
    found = {
        f"each step has batch_size={run.data.batch_size} samples, whatever tokens_per_batch": run.data.tokens_per_batch,
        "compiled blocks are counted as if they were not": run.parallel.compile,
        "Muon's own products are not counted": run.optim.optimizer == "muon",
        "teachers are not counted": bool(run.distil),
    }
    return [told for told, here in found.items() if here]


def _batches(run: Run, tokenizer: Tokenizer | None, model: UnifiedModel, assumed: Assumed, said: list[str]) -> Batches:
    if tokenizer is not None:
        try:
            return own_batches(run, tokenizer)
        except (UserError, OSError) as why:
            said.append(f"the data are not here ({why})")
    told = "samples are made up"
    names = {name for source in run.data.train for name in source.modalities}
    told += f", texts of {assumed.text_tokens // 2} to {assumed.text_tokens} tokens" if "text" in names else ""
    seconds = min(assumed.audio_seconds, run.data.crop_seconds or run.data.max_seconds)
    said.append(told + (f", sounds of {seconds / 2:g} to {seconds:g} s" if "audio" in names else ""))
    return made_up_batches(run, model, assumed)


def _size(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def sizes_of(model: UnifiedModel) -> Sizes:
    blocks = [*model.trunk.blocks, *(block for tower in model.towers.values() for block in blocks_of(tower))]
    inner = {id(parameter) for block in blocks for parameter in block.parameters()}
    named = [*model.named_parameters()]
    matrices = [p for name, p in named if p.requires_grad and p.ndim == 2 and ".blocks." in name]  # as Muon takes them
    largest = sorted((_size(block.parameters()) for block in blocks), reverse=True)
    return Sizes(
        weights=_size([*model.parameters(), *model.buffers()]),
        learned=_size(p for p in model.parameters() if p.requires_grad),
        matrices=_size(matrices),
        blocks=sum(largest[:2]),
        root=_size(p for p in model.parameters() if id(p) not in inner),
    )


def require_samples(run: Run, gpus: int) -> int:
    """Samples of a rank, which are a whole number."""
    own, rest = divmod(run.data.batch_size, gpus)
    told = f"Data.batch_size={run.data.batch_size} is no multiple of {gpus} GPUs"
    require(not rest, f"{told}; give --data.batch-size a multiple, or other --gpus")
    return own
