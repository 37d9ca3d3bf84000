"""The state of a training as files and back, on any number of ranks; written aside where that is asked for.

The state of an optimizer goes by the names of parameters. What it keeps of a parameter's shape is placed as the
parameter is, so that any number of ranks can go on from it, whatever the optimizer.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmfm.config import Run, UserError
from mmfm.models.base_weights import LeftOut
from mmfm.models.best import Best, read_best, write_best
from mmfm.models.checkpoint import BASE, MODEL, STATE, TRAIN, Checkpoint, Save, prune, small_files, verified
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.distributed import Collective, SingleProcess
from mmfm.runtime.sharding import local_parts, placed
from mmfm.runtime.tensor_files import Part, Saved
from mmfm.runtime.tensor_tree import Tree, split

PREFIX = "objectives.model."
OPTIMIZERS, OPENED = "optimizer_states", "opened"
ALONE = SingleProcess()


class FolderSaver:
    """Writes checkpoints into the folder of a run, and reads them. All ranks call alike, and in the same order.

    Nothing of it raises but `load`: `failure` says why the newest checkpoint was not written, or is None. With
    `Parallel.save_async` the state is copied at once and written by a thread, at most one at a time, and becomes a
    checkpoint in `finish`, which waits for the thread; `written` says whether there is nothing to wait for.

    best: what the state to be saved next is the best by. opened: what was verified already of the one to be loaded.
    left_out: the weights under adapters, which are kept elsewhere.
    """

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        ranks: Collective = ALONE,
        opened: Checkpoint | None = None,
        left_out: LeftOut | None = None,
    ) -> None:
        self.run, self.tokenizer, self.ranks, self.opened, self.left_out = run, tokenizer, ranks, opened, left_out
        self.failure: UserError | None = None
        self.best: Best | None = None
        self.staging = Staging()
        self.under_way: tuple[Save, threading.Thread | None, Best | None] | None = None

    def save(self, checkpoint: Mapping[str, Any]) -> None:
        """What Lightning gives of a step, of which this rank keeps what it holds."""
        self.finish()
        first = self.ranks.rank == 0
        tree, tensors = split({key: value for key, value in checkpoint.items() if key != "state_dict"})
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
        more = {} if self.left_out is None else {BASE: self.left_out.file()}
        weights = weights if self.left_out is None else self.left_out.learned(weights)
        held = {MODEL: local_parts(weights, first), TRAIN: local_parts(tensors, first)}
        if self.run.parallel.save_async:
            held = self.staging.copies(held)
        files = {STATE: json.dumps(tree, allow_nan=False).encode()} | small_files(self.run, self.tokenizer) | more
        step = checkpoint["global_step"]
        save = Save(self.run.folder, step, files, held[MODEL], held[TRAIN], self.ranks)
        best, self.best = self.best, None
        try:
            save.begin()
        except UserError as why:
            self.failure = why
            return
        thread = threading.Thread(target=save.write, daemon=True) if self.run.parallel.save_async else None
        self.under_way = save, thread, best
        if thread is not None:
            thread.start()
        else:
            save.write()
            self.finish()

    def written(self) -> bool:
        """Whether this rank has written what is under way."""
        return self.under_way is not None and (self.under_way[1] is None or not self.under_way[1].is_alive())

    def finish(self) -> None:
        """What is under way, if anything, becomes a checkpoint. Older ones go only after this."""
        if self.under_way is None:
            return
        (save, thread, best), self.under_way = self.under_way, None
        if thread is not None:
            thread.join()
        try:
            save.finish()
        except UserError as why:
            self.failure = why
            return
        self.failure = None
        if self.ranks.rank == 0:
            if best is not None:
                write_best(self.run.folder, best)
            best = read_best(self.run.folder)
            keep, every = self.run.keep_checkpoints, self.run.keep_every_steps
            prune(self.run.folder, keep, every, best.step if best else None)

    def load(self, folder: Path) -> dict[str, Any]:
        """As Lightning gave it, with `Saved` in place of the tensors of the model and of optimizers, for
        `restored`, and the checkpoint, to be released when all is read."""
        found, self.opened = self.opened or verified(folder), None
        state = found.tree(handles=f"/{OPTIMIZERS}/")
        if state["global_step"] < self.run.optim.steps:  # else a run that is lengthened would end with its old epoch
            state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        weights = {PREFIX + name: found.weights[name] for name in found.weights.parts}
        return state | {"state_dict": weights, OPENED: found}


class Staging:
    """Copies in the memory of the host, in buffers that are used again, pinned where the tensors are on a GPU."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], Tensor] = {}

    def copies(self, held: Mapping[str, Mapping[str, Tensor | Part]]) -> dict[str, dict[str, Tensor | Part]]:
        before, self.buffers, made = self.buffers, {}, {kind: dict[str, Tensor | Part]() for kind in held}
        on_gpu = False
        for kind, tensors in held.items():
            for name, one in tensors.items():
                tensor = one.tensor if isinstance(one, Part) else one
                buffer, on_gpu = before.get((kind, name)), on_gpu or tensor.is_cuda
                if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                    buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                buffer.copy_(tensor.detach(), non_blocking=True)
                self.buffers[kind, name] = buffer
                made[kind][name] = one._replace(tensor=buffer) if isinstance(one, Part) else buffer
        if on_gpu:
            torch.cuda.synchronize()
        return made


# The state of an optimizer


def names_of(module: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the parameters in the optimizer's order, which is how its state counts them."""
    known = {id(parameter): name.removeprefix(PREFIX) for name, parameter in module.named_parameters()}
    return [known[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def by_name(state: Mapping[str, Any], names: list[str]) -> Tree:
    """An optimizer's `state_dict` with names in place of numbers. Groups are kept whole: the rate's schedule does not
    hold the rates."""
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: value for i, value in state["state"].items()}, "param_groups": groups}


def restored_optimizer(saved: Mapping[str, Any], module: nn.Module, optimizer: Optimizer, run: Run) -> Tree:
    """A `state_dict` for this optimizer, of one by name, or by number as older versions saved it.

    Raises UserError where groups are others: which parameters a pattern of `optim.param_groups` takes in is not the
    same in all versions of mmfm.
    """
    names, parameters = names_of(module, optimizer), [p for group in optimizer.param_groups for p in group["params"]]
    place: dict[Any, int] = {name: number for number, name in enumerate(names)}
    place |= {number: number for number in range(len(names))}
    there = [[place.get(one, -1) for one in group["params"]] for group in saved["param_groups"]]
    numbers = iter(range(len(names)))
    here = [[next(numbers) for _ in group["params"]] for group in optimizer.param_groups]
    if [sorted(group) for group in there] != here:
        then, now = ([len(group) for group in groups] for groups in (there, here))
        told = f"{run.folder}: optim.param_groups once made groups of {then} parameters, and make {now} now"
        told += ", but of others" * (then == now)
        remedy = f"begin a new run with its weights: --start {run.folder} --name NEW"
        raise UserError(f"{told}, so that its optimiser's state fits none of them; {remedy}")
    state = {
        place[key]: {
            name: restored(value, parameters[place[key]], name) if isinstance(value, Saved) else value
            for name, value in values.items()
        }
        for key, values in saved["state"].items()
    }
    groups = [{**group, "params": mine} for group, mine in zip(saved["param_groups"], here, strict=True)]
    return {"state": state, "param_groups": groups}


def restored(saved: Saved, like: Tensor, name: str = "") -> Tensor:
    """What was saved, placed as `like` where it has its shape. What counts steps has none, and stays as it is; other
    single numbers were once saved without a dimension."""
    if saved.shape == tuple(like.shape):
        return placed(like, saved.read)
    if name == "step" or saved.shape or tuple(like.shape) != (1,):
        return saved.read()
    one = saved.read().reshape(1)
    return placed(like, lambda box: one if box is None else one[box[0][0] : box[0][0] + box[1][0]])
