"""Checkpoints as folders of safetensors and strict JSON: written whole or not at all, verified when read.

    checkpoints/step-00000500/model.safetensors  train.safetensors  train.json  run.json  tokenizer.json  manifest.json

`manifest.json` holds size and CRC-32 of the others and is written last, in a temporary folder beside the final one,
which is then renamed. Nothing is ever unpickled.
"""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mmfm.config import Conformer, Model, Run, TextTower, TokenizerSpec, Tower, UserError, Vit, require
from mmfm.config.serialization import to_json
from mmfm.preprocessing.tokenizer import Tokenizer, parse_reader, parse_tokenizer
from mmfm.runtime.files import Manifest, manifest, whole_folder, write_file
from mmfm.runtime.launch import first_process

AGAIN = "choose another step or train again"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}  # of safetensors
Tree = Any
Found = TypeVar("Found")
MODEL, TRAIN, STATE, RUN, TOKENIZER, READER, MANIFEST = (
    "model.safetensors",
    "train.safetensors",
    "train.json",
    "run.json",
    "tokenizer.json",
    "reader.json",  # the text tower's, where it has one of its own
    "manifest.json",
)


def split(tree: Tree, path: str = "") -> tuple[Tree, dict[str, Tensor]]:
    """A tree of dicts, lists, numbers, strings and tensors as JSON and named tensors; the inverse of `join`."""
    if isinstance(tree, Tensor):
        return {"tensor": path}, {path: tree.detach().cpu().contiguous()}
    if isinstance(tree, Mapping):
        parts = [(key, *split(value, f"{path}/{key}")) for key, value in tree.items()]
        return {"map": [[key, value] for key, value, _ in parts]}, _merge([found for *_, found in parts])
    if isinstance(tree, list | tuple):
        pairs = [split(value, f"{path}/{i}") for i, value in enumerate(tree)]
        return {"list": [value for value, _ in pairs]}, _merge([found for _, found in pairs])
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}, {}
    raise TypeError(f"{path}: a {type(tree).__name__} cannot be kept in a checkpoint")


def join(tree: Tree, tensors: Mapping[str, Tensor]) -> Tree:
    ((kind, value),) = tree.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "map":
            return {key: join(part, tensors) for key, part in value}
        case "list":
            return [join(part, tensors) for part in value]
        case _:
            return value


def _merge(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for part in parts for name, tensor in part.items()}


def folder_of(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step-{step:08d}"


def steps_of(run_folder: Path) -> list[int]:
    """Steps that have a checkpoint folder, rising; whether they are whole is seen when they are read."""
    names = [path.name for path in (run_folder / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d{8,})", name)))


def save(run_folder: Path, step: int, run: Run, tokenizer: Tokenizer, model: Mapping[str, Tensor], train: Tree) -> Path:
    """Write one checkpoint. On failure what was written is removed, and the UserError names the last good one."""
    final = folder_of(run_folder, step)
    tree, tensors = split(train)
    files = {
        MODEL: save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}),
        TRAIN: save_tensors(tensors),
        STATE: json.dumps(tree, allow_nan=False).encode(),
        RUN: to_json(run).encode(),
        TOKENIZER: tokenizer.to_json().encode(),
    }
    if tokenizer.reader is not None:
        files[READER] = tokenizer.reader.to_json().encode()
    try:
        with whole_folder(final) as temporary:
            for name, data in files.items():
                write_file(temporary / name, data)
            write_file(temporary / MANIFEST, manifest(files, step=step))
            set_aside(final)
    except OSError as why:
        raise _not_saved(why, final, run_folder) from why
    return final


def _not_saved(why: OSError, final: Path, run_folder: Path) -> UserError:
    kept = steps_of(run_folder)
    last = f"the last good checkpoint is {folder_of(run_folder, kept[-1])}" if kept else "there is no earlier one"
    remedy = "free some space" if why.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) else "mend that"
    return UserError(f"could not save {final} ({why.strerror or why}); {last}; {remedy} and run again with --resume")


def set_aside(folder: Path) -> None:
    """Out of the way of what is counted as a checkpoint, but not lost: step-N becomes step-N.aside."""
    if folder.exists():
        aside = folder.with_name(f"{folder.name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)


def sweep(run_folder: Path) -> None:
    """Remove what processes that died while they wrote have left. Only for who holds the folder's lock."""
    for path in (*run_folder.glob(".*.tmp"), *(run_folder / "checkpoints").glob(".step-*.tmp")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def clear(run_folder: Path) -> None:
    """Remove all checkpoints."""
    for path in (run_folder / "checkpoints").glob("step-*"):
        shutil.rmtree(path)


def prune(run_folder: Path, keep: int, every: int = 0, best: int | None = None) -> None:
    """Keep the newest `keep` checkpoints, those at multiples of `every` steps (0: none), and the best one."""
    for step in steps_of(run_folder)[:-keep]:
        if step != best and (not every or step % every):
            shutil.rmtree(folder_of(run_folder, step))


def read_verified(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint. A cut, changed or missing one is a UserError that names it."""
    listed = manifest_of(folder)
    return {name: listed.read(name) for name in listed.files}


def read_model(folder: Path) -> tuple[dict[str, bytes], dict[str, Tensor]]:
    """What a checkpoint keeps of the model alone: its small files and its weights, without the state of training."""
    listed = manifest_of(folder)
    small = {name: listed.read(name) for name in listed.files if name not in (MODEL, TRAIN, STATE)}
    listed.verify([MODEL])
    return small, read_tensors(folder / MODEL, AGAIN)


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, one after the other, into memory of their own: where a tensor begins in memory
    decides which kernels run, and so its last bits. UserError where the file is none."""
    try:
        with safe_open(path, "pt") as checked:  # refuses what its header says wrongly
            names = checked.keys()
            dtypes = {name: checked.get_slice(name).get_dtype() for name in names}
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
            found = {}
            for name, dtype in dtypes.items():
                tensor = torch.empty(header[name]["shape"], dtype=DTYPES[dtype])
                file.seek(start + header[name]["data_offsets"][0])
                if tensor.numel():
                    file.readinto(tensor.flatten().view(torch.uint8).numpy().data)
                found[name] = tensor
            return found
    except (SafetensorError, OSError, KeyError) as why:
        raise UserError(f"{path} cannot be read ({why}); {remedy}") from None


def adopt(model: torch.nn.Module, found: Mapping[str, Tensor], where: str) -> None:
    """The tensors themselves become the model's weights, in place of those that it was built with."""
    check_shapes(model, found, where)
    model.load_state_dict(found, strict=True, assign=True)


def manifest_of(folder: Path) -> Manifest:
    required = (MODEL, TRAIN, STATE, RUN, TOKENIZER)
    return Manifest(folder / MANIFEST, "checkpoint", AGAIN, (*required, READER), required)


def newest_whole(run_folder: Path) -> tuple[int, dict[str, bytes]]:
    """The newest checkpoint that verifies. Newer ones that do not are named on the screen."""
    return _newest(run_folder, read_verified)


def newest_model(run_folder: Path) -> tuple[int, tuple[dict[str, bytes], dict[str, Tensor]]]:
    """`read_model` of the newest checkpoint whose model verifies."""
    return _newest(run_folder, read_model)


def newest_step(run_folder: Path) -> int:
    """Its step alone: for one of several ranks, who then tells the others."""
    return _newest(run_folder, lambda folder: manifest_of(folder).verify())[0]


def _newest(run_folder: Path, read: Callable[[Path], Found]) -> tuple[int, Found]:
    problems = []
    for step in reversed(steps_of(run_folder)):
        try:
            found = step, read(folder_of(run_folder, step))
        except UserError as why:
            problems.append(str(why))
            continue
        for problem in problems if first_process() else ():
            print(f"mmfm: {problem.partition('; ')[0]}; step {step} is used instead", file=sys.stderr)
        return found
    if problems:
        raise UserError(problems[0])
    raise UserError(f"{run_folder} has no checkpoint; train it first, for example: mmfm train configs/quickstart.py")


def load_train(files: Mapping[str, bytes], where: str) -> Tree:
    """What `save` was given as `train`."""
    try:
        return join(json.loads(files[STATE]), load_tensors(files[TRAIN]))
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as why:
        raise UserError(f"{where}/{STATE} holds no state of training ({why}); choose another step") from None


def load_weights(files: Mapping[str, bytes], model: torch.nn.Module, where: str) -> None:
    """Weights into the module; another configuration's weights are a UserError that names the first difference."""
    found = read_weights(files, where)
    check_shapes(model, found, where)
    model.load_state_dict(found, strict=True)


def read_weights(files: Mapping[str, bytes], where: str) -> dict[str, Tensor]:
    try:
        return load_tensors(files[MODEL])
    except SafetensorError as why:
        raise UserError(f"{where}/{MODEL} cannot be read ({why}); choose another step or train again") from None


def check_shapes(model: torch.nn.Module, found: Mapping[str, Tensor], where: str) -> None:
    wanted = model.state_dict()
    for name in (*wanted, *found):
        here, there = (tuple(table[name].shape) if name in table else "none" for table in (wanted, found))
        if (here or (1,)) != (there or (1,)):  # a scalar of an older checkpoint is a vector of one
            raise UserError(
                f"{where} is of another configuration: {name} has shape {there} there and {here} in this model; "
                "use the run.json beside the weights"
            )


def check_size(cfg: Model, found: Mapping[str, Tensor], where: str) -> None:
    """Before a model takes memory: no single matrix that the configuration asks for is larger than all the weights."""
    (matrix, deepest), held = extent(cfg), sum(tensor.numel() for tensor in found.values())
    told, remedy = f"{where} is of another configuration", "use the run.json beside the weights"
    require(matrix <= held, f"{told}: a matrix of {matrix:g} numbers, of {held} in all; {remedy}")
    require(deepest <= len(found), f"{told}: {deepest} layers of {len(found)} tensors; {remedy}")


def extent(cfg: Model) -> tuple[int | float, int]:
    """Numbers of the largest matrix that a configuration asks for, and layers of its deepest part."""
    whole = (cfg.image, cfg.audio, cfg.text, cfg.trunk)
    parts = [part for part in whole if part is not None and not isinstance(part, Tower)]
    asked: list[float] = [part.width**2 for part in parts]
    asked += [cfg.trunk.width * n for n in (cfg.embed_dim, cfg.codes("image"), cfg.codes("audio"))]
    asked.append(cfg.trunk.mlp_ratio * cfg.trunk.width**2)
    asked += [part.hidden * part.width for part in parts] + [cfg.trunk.head_dim * cfg.trunk.heads * cfg.trunk.width]
    asked += [max(cfg.text.context, cfg.text.vocabulary) * cfg.text.width] if isinstance(cfg.text, TextTower) else []
    asked += [cfg.image.prefix * cfg.image.width] if isinstance(cfg.image, Vit) else []
    asked += [cfg.audio.kernel * cfg.audio.width] if isinstance(cfg.audio, Conformer) else []
    asked += [cfg.audio.left, cfg.audio.right] if isinstance(cfg.audio, Conformer) else []
    asked += [cfg.image.tokens * cfg.image.width] if isinstance(cfg.image, Vit) else []
    return max(asked), max(part.depth for part in parts)


def read_tokenizer(files: Mapping[str, bytes], cfg: Model, where: Path) -> Tokenizer:
    """The model's tokenizer of a checkpoint, and with it that of a text tower which has one of its own."""
    tokenizer, words = parse_tokenizer(read_text(files, TOKENIZER, where), str(where / TOKENIZER)), words_of(cfg)
    if words is None:
        return tokenizer
    require(READER in files, f"{where} lacks {READER}, by which its text tower reads; choose another step")
    return replace(tokenizer, reader=parse_reader(read_text(files, READER, where), words, str(where / READER)))


def words_of(cfg: Model) -> TokenizerSpec | None:
    """The contract of a text tower that has its own tokenizer."""
    return None if cfg.text is None else cfg.text.words


def read_text(files: Mapping[str, bytes], name: str, where: Path) -> str:
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as why:
        raise UserError(f"{where / name} is not UTF-8 at byte {why.start}; choose another step") from None


UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def refuse_unsafe() -> None:
    """A UserError where the environment makes torch execute what is in the files that it loads."""
    require(not os.environ.get(UNSAFE), f"{UNSAFE} is set: loaded files could execute code; unset it")


def refuse_foreign(where: str | Path) -> None:
    """A UserError for addresses, and for checkpoints of the kinds that are pickles: those are not even opened."""
    name, path = str(where), Path(where)
    # A Path has one slash where the address had two.
    require(not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name), f"{name} is an address; give a local folder")
    for folder in (path, path / "checkpoints"):
        kind = "torch.distributed.checkpoint" * (folder / ".metadata").exists()
        require(not kind, f"{folder} was written by {kind}, which is a pickle that can execute; give a folder of mmfm")
    require(not path.is_file(), f"{path} is a file, and files such as .ckpt can execute; give the folder of a run")
