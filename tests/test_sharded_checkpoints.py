"""Checkpoints in parts: what any number of ranks wrote, any other number reads, to the bit where nothing is computed
anew; whatever is missing, changed or half written is named, and the checkpoint before it stays.

Ranks are threads where they only write and read, and processes of gloo where weights are sharded by torch.
"""

import contextlib
import json
import math
import multiprocessing
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Threads, on_ranks
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toys import toy_run

from mmfm.config import Ema, UserError
from mmfm.evals.provenance import weights_of
from mmfm.inference.load import load_model
from mmfm.models import checkpoint
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.runtime.distributed import Collective, ProcessGroup, Said
from mmfm.runtime.files import Sum, checksum, manifest, write_file
from mmfm.runtime.sharding import local_parts
from mmfm.runtime.tensor_files import Part, SavedTensors, pieces, read_summed
from mmfm.runtime.tensor_tree import split
from mmfm.training.ema import update_ema
from mmfm.training.resume import open_checkpoint
from mmfm.training.saving import by_name, names_of, restored, restored_optimizer

TOKENIZER = load_tokenizer("bytes")
GONE = "choose another"


def exactly(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# Files


EACH = {
    "a": torch.randn(3, 5),
    "scalar": torch.tensor(2.0, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
    "half": torch.randn(7).bfloat16(),
    "turned": torch.randn(4, 6).T,
    "count": torch.tensor(2**40),
}


def test_a_file_is_one_of_safetensors(tmp_path: Path) -> None:
    """Tensors of all kinds, those that are no rows in memory too, as safetensors itself reads them; and the sums of
    writing and of reading are those of the file."""
    path = tmp_path / "x.safetensors"
    written = write_file(path, pieces(EACH))
    exactly(load_file(path), {name: tensor.contiguous() for name, tensor in EACH.items()})
    exactly(SavedTensors([path], GONE).read_all(), EACH)
    found, read = read_summed(path)
    exactly(found, EACH)
    assert written == read == Sum(path.stat().st_size, checksum(path))
    save_file({"a": EACH["a"]}, path)
    exactly(SavedTensors([path], GONE).read_all(), {"a": EACH["a"]})


def test_what_is_no_tensor_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"x: a tensor of torch.complex64 cannot be kept"):
        write_file(tmp_path / "x", pieces({"x": torch.zeros(2, dtype=torch.complex64)}))


def grid(whole: Tensor, *cuts: tuple[int, ...]) -> list[Part]:
    """The parts of a tensor, cut at these places of each dimension."""
    ends = [pairwise((0, *cut, size)) for cut, size in zip(cuts, whole.shape, strict=True)]
    boxes: list[tuple[slice, ...]] = [()]
    for dimension in ends:
        boxes = [(*box, slice(*end)) for end in dimension for box in boxes]
    return [Part(whole[box], tuple(s.start for s in box), tuple(whole.shape)) for box in boxes]


def written(folder: Path, parts: list[Part]) -> list[Path]:
    paths = [folder / f"{number}.safetensors" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        write_file(path, pieces({"x": part}))
    return paths


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("cuts", [((), ()), ((3,), ()), ((2, 3, 4), ()), ((), (1, 5)), ((1, 4), (2,))])
def test_any_slice_of_any_parts(tmp_path: Path, cuts: tuple[tuple[int, ...], ...], held: bool) -> None:
    """Cut by rows, by columns and by both: every box of the whole, from the disk and from what was read while it was
    verified. From the disk the rows that a box touches are read, and no others."""
    whole = torch.randn(5, 6)
    paths = written(tmp_path, grid(whole, *cuts))
    for top in range(5):
        for bottom in range(top + 1, 6):
            found = SavedTensors(paths, GONE)
            for path in paths if held else ():
                found.hold(path, read_summed(path)[0])
            before = found.bytes_read
            exactly(found.read("x", ((top, 1), (bottom - top, 4))), whole[top:bottom, 1:5])
            rows = sum(part.tensor.shape[1] for part in grid(whole, (), cuts[1]))
            assert found.bytes_read - before <= (0 if held else 4 * rows * (bottom - top))
    exactly(SavedTensors(paths, GONE).read("x"), whole)


def test_parts_that_are_no_whole_are_refused(tmp_path: Path) -> None:
    """A hole, an overlap with as many numbers as the whole, other shapes, and a part beyond the end: memory that nobody
    wrote is never read."""
    whole = torch.randn(6, 2)
    one, two, three = grid(whole, (2, 4), ())
    other = three._replace(shape=(9, 2))
    for wrong in ([one, three], [one, two], [one, one, three], [one, two, other], [one, two, three, three]):
        paths = written(tmp_path, wrong)
        with pytest.raises(UserError, match=r"holds of x parts that do not make up the whole; choose another"):
            SavedTensors(paths, GONE)
    for wrong in (three._replace(offset=(5, 0)), three._replace(offset=(-1, 0)), three._replace(offset=(4,))):
        with pytest.raises(UserError, match=r"cannot be read \(of x a part of \(2, 2\) cannot begin at"):
            SavedTensors(written(tmp_path, [wrong]), GONE)


@pytest.mark.parametrize("parts", ["[]", "{", '{"x": 1}', '{"x": {"offset": [0.5], "shape": [2]}}', "[" * 99_999])
def test_hostile_parts_are_refused(tmp_path: Path, parts: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x", metadata={"parts": parts})
    with pytest.raises(UserError, match=r"cannot be read"):
        SavedTensors([tmp_path / "x"], GONE)


# Folders that several ranks write, which are threads here


def rows_of(tensors: Mapping[str, Tensor], rank: int, size: int) -> dict[str, Tensor | Part]:
    """As ranks hold them whose tensors are cut by rows: uneven, and of some nothing at all."""
    made = dict[str, Tensor | Part]()
    for name, tensor in tensors.items():
        if not tensor.ndim:
            made |= {name: tensor} if rank == 0 else {}
            continue
        chunk = math.ceil(len(tensor) / size)
        if len(part := tensor[rank * chunk : (rank + 1) * chunk]):
            made[name] = Part(part, (min(rank * chunk, len(tensor)), *[0] * (tensor.ndim - 1)), tuple(tensor.shape))
    return made


@cache
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    run = toy_run()
    return dict(build(run.model, TOKENIZER.size, run.contrastive).state_dict())


def write_on(ranks: Collective, folder: Path, step: int) -> Path:
    model, (tree, state) = weights(), split({"step": step, "moments": {"a": EACH["a"], "count": EACH["count"]}})
    files = {checkpoint.STATE: json.dumps(tree).encode()} | checkpoint.small_files(toy_run(), TOKENIZER)
    held = [rows_of(tensors, ranks.rank, ranks.size) for tensors in (model, state)]
    return checkpoint.Save(folder, step, files, *held, ranks).whole()


def sharded(folder: Path, step: int = 5, size: int = 4) -> Path:
    weights()  # before there are threads, which would draw them from one generator
    found = on_ranks(size, lambda ranks: write_on(ranks, folder, step))
    for one in found:
        if isinstance(one, Exception):
            raise one
    assert found == [checkpoint.folder_of(folder, step)] * size
    return checkpoint.folder_of(folder, step)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_one_process_reads_what_several_wrote(tmp_path: Path, size: int) -> None:
    """`mmfm.load` and who goes on training, of the same folder, to the bit. Every file has its sum, and each rank that
    holds anything a file of weights of its own."""
    folder = sharded(tmp_path, size=size)
    exactly(dict(load_model(tmp_path).core.state_dict()), weights())
    tree = checkpoint.verified(folder).tree()
    exactly(tree, {"step": 5, "moments": {"a": EACH["a"], "count": EACH["count"]}})
    assert len(list(folder.glob("model*.safetensors"))) == size
    assert len(list(folder.glob("train*.safetensors"))) == min(size, 3), "three rows"
    assert set(checkpoint.manifest_of(folder).files) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    checkpoint.manifest_of(folder).verify()
    step, weights_sum = weights_of(folder) or (0, "")
    (folder / checkpoint.MANIFEST).write_text(
        (folder / checkpoint.MANIFEST).read_text().replace('"crc32": ', '"crc32": 1')
    )
    assert step == 5 and weights_of(folder) not in (None, (5, weights_sum)), "other weights have another sum"


@pytest.mark.parametrize("readers", [1, 2, 4, 8])
def test_each_byte_is_read_once_to_verify_and_never_again_by_who_read_it(tmp_path: Path, readers: int) -> None:
    """As many ranks as wrote read each byte once in all, what they take their weights from included."""
    folder = sharded(tmp_path)
    size = sum(tensor.nbytes for tensor in (*weights().values(), EACH["a"], EACH["count"]))

    def read(ranks: Threads) -> int:
        found = checkpoint.verified(folder, ranks)
        for name, part in rows_of(weights(), ranks.rank, ranks.size).items():
            box = (part.offset, tuple(part.tensor.shape)) if isinstance(part, Part) else None
            exactly(found.weights.read(name, box), part.tensor if isinstance(part, Part) else part)
        return sum(one.bytes_read for one in found.tensors.values())

    total = sum(on_ranks(readers, read))
    assert total == size if readers in (1, 4) else size < total < 2 * size


def test_nothing_is_held_when_all_is_read(tmp_path: Path) -> None:
    """Of a checkpoint of one process two ranks take slices, of files of which the first had read all: a training would
    else keep that as long as it lasts. What is read once more comes from the disk."""
    found = checkpoint.verified(sharded(tmp_path, size=1))
    name, whole = next((name, t) for name, t in weights().items() if t.ndim == 2)
    half = len(whole) // 2, whole.shape[1]
    exactly(found.weights.read(name, ((0, 0), half)), whole[: half[0]])
    assert any(found.weights.held.values())
    found.release()
    assert not any(one.held for one in found.tensors.values())
    exactly(found.weights.read(name, ((0, 0), half)), whole[: half[0]])


@pytest.mark.parametrize("size", [1, 3])
def test_a_changed_byte_of_the_last_rank_is_named_by_all(tmp_path: Path, size: int) -> None:
    """In files whose sums nobody checks again, the same error on every rank; the checkpoint before is used."""
    before, folder = sharded(tmp_path, 5), sharded(tmp_path, 9)
    path = folder / "model-00004-of-00004.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for found in on_ranks(size, lambda ranks: checkpoint.verified(folder, ranks)):
        assert isinstance(found, UserError) and f"{path} is damaged" in str(found)
    with pytest.raises(UserError, match=r"model-00004-of-00004.safetensors is damaged"):
        load_model(folder)
    assert load_model(tmp_path).checkpoint == before


def test_all_ranks_go_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of three ranks finds the newest damaged and the next one has no good file either: all of them open the same
    one, and the first says so; where none is left all stop, the first with the word of the newest."""
    run, ranks = replace(toy_run(), out=str(tmp_path)), 3
    folders = {step: sharded(run.folder, step) for step in (3, 5, 9)}

    def rot(step: int, name: str) -> None:
        data = (folders[step] / name).read_bytes()
        (folders[step] / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    def opened() -> list[Any]:
        def earlier(damaged: dict[int, str]) -> int:
            return checkpoint.newest_listed(run.folder, damaged)[0]

        return on_ranks(ranks, lambda joined: open_checkpoint(run, 9, joined, earlier))

    rot(9, "model-00004-of-00004.safetensors")
    rot(5, "train-00001-of-00003.safetensors")
    for start, found in opened():
        assert start == 3 and found.folder == folders[3]
    said = capsys.readouterr().err.splitlines()
    assert "rank 2: " in said[-2] and "step-00000009/model-00004" in said[-2] and "step 3 is used" in said[-2]
    rot(3, "model-00001-of-00004.safetensors")
    first, *others = opened()
    assert isinstance(first, UserError) and "step-00000009/model-00004" in str(first)
    assert all(isinstance(other, Said) for other in others)


@pytest.mark.parametrize("listed", [False, True])
def test_a_missing_file_is_named(tmp_path: Path, listed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """On the disk, or in the list too: refused by name, and the checkpoint before is used."""
    before, folder = sharded(tmp_path, 5), sharded(tmp_path, 9)
    name = "model-00003-of-00004.safetensors"
    (folder / name).unlink()
    if listed:
        left = {path.name: path for path in folder.iterdir() if path.name != checkpoint.MANIFEST}
        (folder / checkpoint.MANIFEST).write_bytes(manifest(left, step=9))
    with pytest.raises(UserError, match=name):
        load_model(folder)
    assert load_model(tmp_path).checkpoint == before
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("victim", [0, 2])
def test_a_full_disk_of_one_rank_is_one_error_on_all(
    tmp_path: Path, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the rank and the last good checkpoint; nothing of the new one stays, and the next one is whole."""
    before, whole = sharded(tmp_path, 5), checkpoint.write_file

    def filling(path: Path, data: Any) -> Sum:
        if path.name.startswith(f"model-{victim + 1:05d}"):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_file", filling)
        found = on_ranks(4, lambda ranks: write_on(ranks, tmp_path, 9))
    told = {str(one) for one in found if isinstance(one, UserError)}
    assert len(told) == 1 and len(found) == 4
    assert f"(rank {victim}: No space left on device); the last good checkpoint is {before}; free some" in told.pop()
    assert [path.name for path in before.parent.iterdir()] == [before.name]
    sharded(tmp_path, 9)
    assert checkpoint.newest_whole(tmp_path)[0] == 9


# Ranks that are processes


WRITERS = {"1": (1,), "2": (2,), "4": (4,), "2x2": (2, 2)}
READS = (("2", "2"), ("2", "1"), ("2", "4"), ("4", "2"), ("2", "3"), ("2x2", "1"), ("1", "2"), ("2", "2x2"))
SHAPES = {**WRITERS, "3": (3,)}
BEFORE, AFTER = 2, 2


class Toy(nn.Module):
    """Rows that two, three and four ranks cut unevenly, some of which then hold nothing; and a vector of one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise((6, 7, 5, 1)))
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return (x * self.scale).square().mean()


def toy(mesh: DeviceMesh | None) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Toy()
    if mesh is not None:
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == flat], "lr": 0.1} for flat in (True, False)]
    return model, torch.optim.AdamW(groups, lr=0.1)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        if step == 1:
            optimizer.param_groups[1]["lr"] = 0.01  # what no schedule holds
        optimizer.zero_grad()
        model(torch.linspace(-1, 1 + step, 24, dtype=torch.float64).view(4, 6)).backward()
        optimizer.step()
        update_ema(optimizer, Ema(decay=0.9), step + 1)


def whole_weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """And their moving averages, which the optimizer's state holds beside its moments."""
    found = dict(model.state_dict()) | {f"{n}/ema": optimizer.state[p]["ema"] for n, p in model.named_parameters()}
    return {n: t.full_tensor() if isinstance(t, DTensor) else t.clone() for n, t in found.items()}


def toy_save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Collective) -> None:
    saved = by_name(optimizer.state_dict(), names_of(model, optimizer))
    tree, tensors = split({"optimizer": saved})
    files = {checkpoint.STATE: json.dumps(tree).encode()} | checkpoint.small_files(toy_run(), TOKENIZER)
    first = ranks.rank == 0
    held = local_parts(model.state_dict(), first), local_parts(tensors, first)
    checkpoint.Save(folder, BEFORE, files, *held, ranks).whole()


def toy_load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Collective) -> None:
    found = checkpoint.verified(checkpoint.folder_of(folder, BEFORE), ranks)
    mine = model.state_dict()
    model.load_state_dict({name: restored(found.weights[name], mine[name]) for name in found.weights.parts})
    saved = found.tree(handles="/optimizer/")["optimizer"]
    optimizer.load_state_dict(restored_optimizer(saved, model, optimizer, toy_run()))


PICKLES = [(pickle, n) for n in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler")]
PICKLES += [(torch, "save"), (torch, "load")]


@contextlib.contextmanager
def no_pickle() -> Iterator[None]:
    """Whoever pickles or unpickles meanwhile fails, and what looks up a class for it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle")

    watching = [True]
    sys.addaudithook(lambda event, _: refuse() if watching and event == "pickle.find_class" else None)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in PICKLES:
            patch.setattr(owner, name, refuse)
        yield
    watching.clear()


def join_ranks(rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)


def one_rank(rank: int, port: int, folder: Path) -> None:
    join_ranks(rank, 4, port)
    places = {name: torch.arange(math.prod(shape)).view(shape) for name, shape in SHAPES.items()}
    groups = {name: dist.new_group(place.flatten().tolist()) for name, place in places.items()}
    axes = ("replicate", "shard")
    meshes = {name: DeviceMesh("cpu", at, mesh_dim_names=axes[-at.ndim :]) for name, at in places.items()}
    here = [name for name, place in places.items() if rank < place.numel()]

    def make(name: str) -> tuple[nn.Module, torch.optim.Optimizer, Collective]:
        return *toy(None if name == "1" else meshes[name]), ProcessGroup(groups[name])

    for name in (name for name in WRITERS if name in here):
        model, optimizer, ranks = make(name)
        steps(model, optimizer, 0, BEFORE)
        with no_pickle():
            toy_save(folder / name, model, optimizer, ranks)
        steps(model, optimizer, BEFORE, AFTER)
        if found := whole_weights(model, optimizer) if rank == 0 else whole_weights(model, optimizer) and {}:
            write_file(folder / f"{name}.safetensors", pieces(found))
    dist.barrier()
    for wrote, reads in READS:
        if reads in here:
            model, optimizer, ranks = make(reads)
            with no_pickle():
                toy_load(folder / wrote, model, optimizer, ranks)
            steps(model, optimizer, BEFORE, AFTER)
            if found := whole_weights(model, optimizer) if rank == 0 else whole_weights(model, optimizer) and {}:
                write_file(folder / f"{wrote}-{reads}.safetensors", pieces(found))
    dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def processes(size: int, work: Callable[..., None], *args: Any) -> list[int]:
    """Exit statuses of so many ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmfm.training.saving", "mmfm.inference.load", "torch.distributed.fsdp", "pytest"])
    ranks = [context.Process(target=work, args=(rank, *args)) for rank in range(size)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(200)
    return [one.exitcode if one.exitcode is not None else 999 for one in ranks]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    assert processes(4, one_rank, free_port(), folder) == [0] * 4
    return folder


@pytest.mark.parametrize(("wrote", "reads"), READS)
def test_ranks_go_on_from_what_others_wrote(resumed: Path, wrote: str, reads: str) -> None:
    """Two further steps, at a rate that only the optimizer knows: as many ranks have the bits of who was never
    stopped, and any others differ by the order of sums alone. Ranks forbid that anything is pickled on the way."""
    found, expected = (load_file(resumed / f"{name}.safetensors") for name in (f"{wrote}-{reads}", wrote))
    bound = 0 if wrote == reads else 1e-10
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    model, optimizer = toy(None)
    steps(model, optimizer, 0, BEFORE + AFTER)
    torch.testing.assert_close(found, whole_weights(model, optimizer), rtol=0, atol=1e-10)


def test_what_is_held_twice_is_written_once(resumed: Path) -> None:
    """Two copies, each sharded over two ranks: files of two ranks, with as many numbers as one process writes."""
    files = {name: sorted((resumed / name).rglob("model*.safetensors")) for name in ("1", "2x2")}
    assert [path.name for path in files["2x2"]] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]

    def numbers(paths: list[Path]) -> int:
        return sum(tensor.numel() for path in paths for tensor in load_file(path).values())

    assert numbers(files["1"]) == numbers(files["2x2"])


def test_the_parts_are_said_where_they_lie(resumed: Path) -> None:
    """In the head of each file, which any reader of safetensors opens: where a part begins, and the whole shape."""
    _, last = sorted((resumed / "2").rglob("model*.safetensors"))
    with safe_open(last, "pt") as opened:
        parts = json.loads(opened.metadata()["parts"])
        assert parts["layers.0.weight"] == {"offset": [4, 0], "shape": [7, 6]}
        assert opened.get_slice("layers.0.weight").get_shape() == [3, 6]
        assert "scale" not in parts


# Violence


MOMENTS = ("before its fsync", "after its fsync", "before the rename")


def dying_rank(rank: int, port: int, folder: Path, victim: int, moment: str) -> None:
    join_ranks(rank, 2, port)
    ranks = ProcessGroup()
    write_on(ranks, folder, 5)
    fsync, rename = os.fsync, os.replace

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def syncing(handle: int) -> None:
        mine = f"model-{victim + 1:05d}" in os.readlink(f"/proc/self/fd/{handle}")
        if mine and moment == MOMENTS[0]:
            die()
        fsync(handle)
        if mine and moment == MOMENTS[1]:
            die()

    if rank == victim:
        os.fsync = syncing
        os.replace = die if moment == MOMENTS[2] else rename
    try:
        write_on(ranks, folder, 9)
    except BaseException:
        os._exit(3)  # the other is gone, which it tells in its own way


@pytest.mark.parametrize(
    ("victim", "moment"),
    [(victim, moment) for victim in (0, 1) for moment in MOMENTS if not (victim and "rename" in moment)],
)
def test_a_rank_that_is_killed_while_it_saves(tmp_path: Path, victim: int, moment: str) -> None:
    """kill -9: the last whole checkpoint is the newest, nothing else counts as one, and what was left is swept away."""
    statuses = processes(2, dying_rank, free_port(), tmp_path, victim, moment)
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 3
    assert checkpoint.steps_of(tmp_path) == [5] and checkpoint.newest_whole(tmp_path)[0] == 5
    exactly(dict(load_model(tmp_path).core.state_dict()), weights())
    checkpoint.sweep(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    sharded(tmp_path, 9, size=2)
    assert checkpoint.newest_whole(tmp_path)[0] == 9
