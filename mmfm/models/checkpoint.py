"""Checkpoints as folders of safetensors and strict JSON: written whole or not at all, verified when read.

    checkpoints/step-00000500/model.safetensors  train.safetensors  train.json  run.json  tokenizer.json  manifest.json

`manifest.json` holds size and CRC-32 of the others and is written last, in a temporary folder beside the final one,
which is then renamed. Nothing is ever unpickled. Where several ranks hold parts of the tensors, each writes its own
into files of its own, model-00001-of-00004.safetensors and train-00001-of-00004.safetensors; any number of ranks, one
alone included, reads them again.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from mmfm.config import Model, Run, TokenizerSpec, UserError, require
from mmfm.config.serialization import to_json
from mmfm.preprocessing.tokenizer import Tokenizer, parse_reader, parse_tokenizer
from mmfm.runtime.distributed import Collective, SingleProcess, alike
from mmfm.runtime.files import Manifest, Sum, checksum, manifest, sync_folder, write_file
from mmfm.runtime.launch import first_process
from mmfm.runtime.tensor_files import Part, SavedTensors, pieces, read_summed
from mmfm.runtime.tensor_tree import Tree, join, split

AGAIN = "choose another step or train again"
ALONE = SingleProcess()
Found = TypeVar("Found")
MODEL, TRAIN, STATE, RUN, TOKENIZER, READER, BASE, MANIFEST = (
    "model.safetensors",  # or in parts, as TRAIN: model-00001-of-00004.safetensors and so on
    "train.safetensors",
    "train.json",
    "run.json",
    "tokenizer.json",
    "reader.json",  # the text tower's, where it has one of its own
    "base.json",  # where the weights are that a run with adapters leaves out (mmfm/models/base_weights.py)
    "manifest.json",
)
SMALL = (STATE, RUN, TOKENIZER, READER, BASE)
PART = re.compile(r"(model|train)-(\d{5})-of-(\d{5})\.safetensors")


def folder_of(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step-{step:08d}"


def steps_of(run_folder: Path) -> list[int]:
    """Steps that have a checkpoint folder, rising; whether they are whole is seen when they are read."""
    names = [path.name for path in (run_folder / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d{8,})", name)))


def small_files(run: Run, tokenizer: Tokenizer) -> dict[str, bytes]:
    """What a checkpoint says of the model beside its weights."""
    files = {RUN: to_json(run).encode(), TOKENIZER: tokenizer.to_json().encode()}
    return files | ({} if tokenizer.reader is None else {READER: tokenizer.reader.to_json().encode()})


def save(run_folder: Path, step: int, run: Run, tokenizer: Tokenizer, model: Mapping[str, Tensor], train: Tree) -> Path:
    """Write one checkpoint of one process. On failure what was written is removed, and the UserError names the last
    good one."""
    tree, tensors = split(train)
    files = {STATE: json.dumps(tree, allow_nan=False).encode(), **small_files(run, tokenizer)}
    return Save(run_folder, step, files, model, tensors).whole()


class Save:
    """One checkpoint on its way to the disk: `begin` and `finish` are for all ranks at once, and `write` for each on
    its own, in any thread. `files`, of the first rank, are small; `model` and `train` are what this rank holds.

    On failure of one rank all raise the same UserError, which names the last good checkpoint; what was written goes.
    """

    def __init__(
        self,
        run_folder: Path,
        step: int,
        files: Mapping[str, bytes],
        model: Mapping[str, Tensor | Part],
        train: Mapping[str, Tensor | Part],
        ranks: Collective = ALONE,
    ) -> None:
        self.run_folder, self.step, self.files, self.ranks = run_folder, step, files, ranks
        self.held = {MODEL: model, TRAIN: train}
        self.final = folder_of(run_folder, step)
        self.temporary = self.final.with_name(f".{self.final.name}.tmp")
        self.tensors: dict[str, Mapping[str, Tensor | Part]] = {}
        self.sums: dict[str, Sum] = {}
        self.failure: Exception | None = None

    def whole(self) -> Path:
        """All of it, one after the other."""
        self.begin()
        self.write()
        return self.finish()

    def begin(self) -> None:
        with self._or_nothing():
            holds = alike(self.ranks, self._begin)
        for name, tensors in self.held.items():
            writers = [rank for rank, held in enumerate(holds) if held[name]] or [0]
            if self.ranks.rank in writers:
                self.tensors[_numbered(name, writers.index(self.ranks.rank), len(writers))] = tensors

    def _begin(self) -> dict[str, bool]:
        if self.ranks.rank == 0:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(parents=True)
        return {name: bool(tensors) for name, tensors in self.held.items()}

    def write(self) -> None:
        """This rank's files are on the disk, and come back from it as they were written; else `failure` says why."""
        try:
            for name, tensors in self.tensors.items():
                self.sums[name] = write_file(self.temporary / name, pieces(tensors))
            for name, data in self.files.items() if self.ranks.rank == 0 else ():
                self.sums[name] = write_file(self.temporary / name, data)
            for name, written in self.sums.items():
                there = self.temporary / name
                read = Sum(there.stat().st_size, checksum(there))
                require(read == written, f"{self.final / name} is damaged: it does not read as it was written")
        except Exception as why:
            self.failure = why

    def finish(self) -> Path:
        with self._or_nothing():
            sums = alike(self.ranks, self._written)
            alike(self.ranks, lambda: self._publish(sums) if self.ranks.rank == 0 else None)
        return self.final

    def _written(self) -> dict[str, Sum]:
        if self.failure is not None:
            raise self.failure
        return self.sums

    def _publish(self, sums: Sequence[Mapping[str, Sequence[int]]]) -> None:
        files = {name: Sum(*found) for one in sums for name, found in one.items()}
        write_file(self.temporary / MANIFEST, manifest(files, step=self.step))
        sync_folder(self.temporary)
        set_aside(self.final)
        os.replace(self.temporary, self.final)
        sync_folder(self.final.parent)

    @contextlib.contextmanager
    def _or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException as why:
            if self.ranks.rank == 0:
                shutil.rmtree(self.temporary, ignore_errors=True)
            if isinstance(why, OSError | UserError):
                raise _not_saved(why, self.final, self.run_folder) from why
            raise


def _numbered(name: str, place: int, count: int) -> str:
    stem, _, suffix = name.partition(".")
    return name if count == 1 else f"{stem}-{place + 1:05d}-of-{count:05d}.{suffix}"


def _not_saved(why: OSError | UserError, final: Path, run_folder: Path) -> UserError:
    kept = steps_of(run_folder)
    last = f"the last good checkpoint is {folder_of(run_folder, kept[-1])}" if kept else "there is no earlier one"
    number, told = (why.errno, why.strerror) if isinstance(why, OSError) else (None, None)
    remedy = "free some space" if number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) else "mend that"
    return UserError(f"could not save {final} ({told or why}); {last}; {remedy} and run again with --resume")


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


class Checkpoint:
    """A checkpoint that is there: `files` are its small ones, `weights` and `state` its tensors, of which none is read
    before it is asked for, but what `verified` gives has been read once and so is held. `training`: whether that
    state is looked at, too."""

    def __init__(self, folder: Path, training: bool = True) -> None:
        self.folder, self.listed = folder, manifest_of(folder)
        kinds, small = ((MODEL, TRAIN), SMALL) if training else ((MODEL,), SMALL[1:])
        paths = {name: _paths(self.listed, name) for name in kinds}
        self.listed.verify_sizes([path.name for found in paths.values() for path in found])
        self.files = {name: self.listed.read(name) for name in small if name in self.listed.files}
        self.tensors = {name: SavedTensors(found, AGAIN) for name, found in paths.items()}

    @property
    def weights(self) -> SavedTensors:
        return self.tensors[MODEL]

    def release(self) -> None:
        """Nothing is held any more; what is read again is read from the disk."""
        for tensors in self.tensors.values():
            tensors.held.clear()

    def tree(self, handles: str = "\0") -> Tree:
        """The state of training; of tensors whose path begins with `handles`, what they can be read by."""
        try:
            plain, state = json.loads(self.files[STATE]), self.tensors[TRAIN]
            return join(plain, lambda path: state[path] if path.startswith(handles) else state.read(path))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as why:
            told = f"{self.folder / STATE} holds no state of training ({why}); choose another step"
            raise UserError(told) from None


def verified(folder: Path, ranks: Collective = ALONE, training: bool = True) -> Checkpoint:
    """A checkpoint whose files were all read, each by one rank, which holds what it read until that is asked for. What
    is missing, cut or changed is a UserError, the same on all ranks, that names it."""

    def read() -> Checkpoint:
        found = Checkpoint(folder, training)
        for tensors in found.tensors.values():
            for place, path in enumerate(tensors.paths):
                if place * ranks.size // len(tensors.paths) == ranks.rank:
                    tensors.hold(path, found.listed.checked(path.name, read_summed))
        return found

    made: list[Checkpoint] = []
    alike(ranks, lambda: made.append(read()))
    return made[0]


def read_model(folder: Path) -> tuple[dict[str, bytes], dict[str, Tensor]]:
    """What a checkpoint keeps of the model alone: its small files and its weights, without the state of training."""
    found = verified(folder, training=False)
    return found.files, found.weights.read_all()


def read_small(folder: Path) -> dict[str, bytes]:
    """The small files of a checkpoint of whose others at least the sizes are right."""
    return Checkpoint(folder).files


def manifest_of(folder: Path) -> Manifest:
    listed = Manifest(folder / MANIFEST, "checkpoint", AGAIN, _Known(), (STATE, RUN, TOKENIZER))
    for name in (MODEL, TRAIN):
        there = {path.name for path in _paths(listed, name)}
        count = max((int(match[3]) for one in there if (match := PART.fullmatch(one))), default=1)
        lacking = {_numbered(name, place, count) for place in range(count)} ^ there
        require(not lacking, f"{listed.path} should not lack or list {min(lacking, default='')!r}; {AGAIN}")
    return listed


class _Known:
    """The names of the files of checkpoints."""

    def __contains__(self, name: object) -> bool:
        return name in (*SMALL, MODEL, TRAIN) or PART.fullmatch(str(name)) is not None


def _paths(listed: Manifest, name: str) -> list[Path]:
    """The files of the model's tensors, or of those of training."""
    mine = [one for one in listed.files if one == name or (PART.fullmatch(one) and one[:5] == name[:5])]
    return [listed.folder / one for one in sorted(mine)]


def newest_listed(run_folder: Path, damaged: Mapping[int, str]) -> tuple[int, dict[str, bytes]]:
    """`read_small` of the newest checkpoint that looks whole, and is none of these of which it is known that they are
    not, and why."""
    return _newest(run_folder, read_small, damaged)


def newest_whole(run_folder: Path) -> tuple[int, dict[str, bytes]]:
    """`read_small` of the newest checkpoint that verifies. Newer ones that do not are named on the screen."""

    def read(folder: Path) -> dict[str, bytes]:
        manifest_of(folder).verify()
        return read_small(folder)

    return _newest(run_folder, read)


def newest_model(run_folder: Path) -> tuple[int, tuple[dict[str, bytes], dict[str, Tensor]]]:
    """`read_model` of the newest checkpoint whose model verifies."""
    return _newest(run_folder, read_model)


def newest_step(run_folder: Path) -> int:
    """Its step alone: for one of several ranks, who then tells the others."""
    return _newest(run_folder, lambda folder: manifest_of(folder).verify())[0]


def _newest(
    run_folder: Path, read: Callable[[Path], Found], damaged: Mapping[int, str] | None = None
) -> tuple[int, Found]:
    problems = []
    for step in reversed(steps_of(run_folder)):
        try:
            require(step not in (damaged or {}), (damaged or {}).get(step, ""))
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
