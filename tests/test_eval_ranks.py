"""Evaluation on several ranks gives the figures of one, to the bit; what fails on one of them is said once.

Ranks are threads here, each with a model of its own, but for one test of real processes. tests/slow runs the command.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import SMALL, evaluate, image_bytes, read, saved_run, shard, tasks_of
from ranks import Threads, on_ranks
from torch import Tensor, nn

from mmfm.__main__ import main, parse
from mmfm.config import UserError
from mmfm.config.serialization import to_json
from mmfm.data.sample import Sample
from mmfm.evals.command import Evaluate, words_of
from mmfm.evals.config import EvalConfig
from mmfm.evals.gather import from_tree, packed, shared, to_tree, unpacked
from mmfm.evals.heads import Part, read_split
from mmfm.evals.metrics import Bootstrap
from mmfm.evals.predict import sample_digest
from mmfm.evals.run import evaluate_run, load_shared, scores_during_training
from mmfm.evals.split import TEXTS_AT_ONCE, Coded, Filled, SampleInfo, Vectors, Written, at_rest, encode_texts
from mmfm.inference.load import load_model
from mmfm.models.checkpoint import newest_step, steps_of
from mmfm.runtime.distributed import Said, SingleProcess, attend, each, together
from mmfm.runtime.rendezvous import assembled, device_of_rank

HOW = EvalConfig(bootstrap=Bootstrap(resamples=20), batch_size=3, max_tokens=4)
WORDS = ("one", "two", "three", "four")


def mixture(folder: Path) -> str:
    """Seventeen samples: pictures, sounds, both, a text alone, a class by its name, and a picture that is cut."""
    samples: dict[str, dict[str, Any]] = {f"i{n}": {"image": n, "txt": WORDS[n % 4]} for n in range(7)}
    samples |= {f"s{n}": {"audio": n, "txt": WORDS[n % 4]} for n in range(5)}
    samples |= {f"x{n}": {"image": n, "audio": n, "json": json.dumps({"label": WORDS[n]})} for n in range(3)}
    samples |= {"t": {"txt": "alone ✓"}, "y": {"png": image_bytes(9)[:60], "txt": "one"}}
    return shard(folder / "0.tar", samples)


def test_any_number_of_ranks_gives_the_figures_of_one(tmp_path: Path) -> None:
    """1, 2, 3 and more ranks than batches: rows, counts, confusions and gallery, the bad sample counted once; the
    other ranks get none."""
    spec = mixture(tmp_path / "val")
    made = saved_run(tmp_path, spec)

    def score(ranks: Any) -> Any:
        return evaluate(load_model(made.folder), spec, HOW, ranks=ranks)

    alone = score(SingleProcess())
    assert "1 of 17 samples cannot be used: image_damaged (1); they are y" in alone.details.left_out
    assert {"image->text", "audio->image", "image>text", ">text"} <= tasks_of(alone)
    for size in (2, 3, 7):  # of six batches
        first, *others = on_ranks(size, score)
        assert first == alone and not any(other.rows for other in others)


def test_an_evaluation_in_half_precision_asks_the_same(tmp_path: Path) -> None:
    """All of it in bf16: the same scores by name, likelihoods near those of fp32 and not equal to them."""
    spec = mixture(tmp_path / "val")
    made = saved_run(tmp_path, spec)
    plain, half = (
        {(row.task, row.metric): row.value for row in evaluate_run(made.folder, dtype=one, num_workers=0, limit=12)}
        for one in ("auto", "bfloat16")
    )
    assert plain.keys() == half.keys() and plain != half
    bits = [name for name in plain if "bits" in name[1]]
    assert bits and all(half[name] == pytest.approx(plain[name], rel=0.02) for name in bits)


def test_every_rank_holds_the_whole_split(tmp_path: Path) -> None:
    """The same vectors to the bit, texts, labels, surprise and digest, on each of three ranks as on one."""
    spec = f"{mixture(tmp_path / 'a')},{shard(tmp_path / 'b' / '0.tar', {'w': {'image': 30, 'txt': 'wide'}})}"
    made = saved_run(tmp_path, spec)

    def seen(ranks: Any) -> Any:
        return read(load_model(made.folder), spec, HOW, asking=17, ranks=ranks)

    alone = seen(SingleProcess())
    for split in on_ranks(3, seen):
        for name in ("infos", "written", "unread", "bad", "own", "digest"):
            assert getattr(split, name) == getattr(alone, name)
        for name, (x, rows) in alone.vectors.items():
            assert torch.equal(split.vectors[name].x, x) and np.array_equal(split.vectors[name].rows, rows)
        for task, nats in alone.nats.items():
            np.testing.assert_array_equal(split.nats[task], nats)


def test_each_batch_is_read_by_one_rank_alone(tmp_path: Path) -> None:
    """The decoding is shared too: over three ranks every sample is opened once, in the batches of one rank."""
    opened: list[tuple[int, int]] = []
    spec = mixture(tmp_path / "val")
    made = saved_run(tmp_path, spec)

    def read_all(ranks: Any) -> None:
        class Watched:
            def __init__(self) -> None:
                self.ignored = Counter[str]()

            def __len__(self) -> int:
                return 17

            def __getitem__(self, sample: int, /) -> Sample:
                opened.append((sample, ranks.rank))
                return Sample(str(sample), {"txt": b"a", "png": image_bytes(sample)}, str(sample))

        with at_rest(model := load_model(made.folder)):
            read_split(model, Watched(), name="x", source="x", config=HOW, ranks=ranks)

    assert on_ranks(3, read_all) == [None] * 3
    assert sorted(opened) == [(sample, sample // 3 % 3) for sample in range(17)]


def test_texts_are_dealt_by_the_slice() -> None:
    """Each slice of texts is encoded once over all ranks, with the same neighbours as by one."""
    seen: list[tuple[int, int]] = []

    class Counting(nn.Module):
        embed_dim, modalities, tasks, tokenizer, config = 2, ("text",), (), None, SMALL

        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank = rank

        def encode_text(self, texts: list[str], normalize: bool = True) -> Tensor:
            seen.append((len(texts), self.rank))
            return torch.tensor([[float(text), len(texts)] for text in texts])

        def embed(self, batch: Any) -> Any: ...
        def write(self, task: str, batch: Any, max_tokens: int) -> Any: ...
        def nats(self, task: str, batch: Any) -> Any: ...

    texts = [str(n) for n in range(2 * TEXTS_AT_ONCE + 5)]
    alone = encode_texts(Counting(0), texts)
    seen.clear()
    for x in on_ranks(4, lambda ranks: encode_texts(Counting(ranks.rank), texts, ranks)):
        assert torch.equal(x, alone)
    assert sorted(seen) == [(5, 2), (TEXTS_AT_ONCE, 0), (TEXTS_AT_ONCE, 1)]
    assert on_ranks(2, lambda ranks: encode_texts(Counting(0), [], ranks).shape) == [(0, 2)] * 2


def test_pieces_come_back_in_order_whatever_the_number_of_ranks() -> None:
    """Over several rounds and uneven hands; the watcher of a rank sees its own pieces, and the end of them."""
    ended: list[int] = []

    def work(ranks: Any, count: int) -> Any:
        def watch(pieces: list[int]) -> Any:
            yield from pieces
            ended.append(len(pieces))

        return shared(range(count), lambda piece: piece * piece, ranks, int, watch)

    for count, size in ((41, 2), (41, 3), (1, 4), (0, 2), (16, 2)):
        ended.clear()
        assert on_ranks(size, lambda ranks, n=count: work(ranks, n)) == [[n * n for n in range(count)]] * size
        assert sum(ended) == count and len(ended) == size


def test_a_part_travels_unchanged() -> None:
    """Strange texts, labels of any JSON kind, nan, numbers as keys, empty tensors, memory that is shared."""
    x = torch.tensor([[math.nan, -0.0], [1e-45, 3.0]])
    part = Part(
        infos=(
            SampleInfo("k\udcff", None, (3, {"a": [1.5, None]}), "0f"),
            SampleInfo("ü", "\u2028 \\", (None, True), "1", ("image",), True, ("audio",), "ab", ("ü", "u")),
        ),
        vectors={"image": Vectors(x, np.array([1, 0])), "audio": Vectors(x[:1], np.array([1]))},
        written={"image>text": [Written(1, "")], "audio>text": []},
        nats={">text": np.array([math.nan, 0.1])},
        filled={"text~": [Filled(1, 0.5, 3, 1, 2)]},
        coded={"image": Coded(["k"], ["m"], {"psnr": np.array([2.5])}, {}, [np.array([1, 2])], [3.0])},
        unread=1,
        bad={0: "image_damaged"},
    )
    found = from_tree(Part, unpacked(packed([to_tree(part)]))[0])
    assert (found.infos, found.written, found.unread, found.bad) == (part.infos, part.written, 1, part.bad)
    assert found.filled == part.filled
    np.testing.assert_equal(found.coded["image"], part.coded["image"])
    for name, (values, rows) in part.vectors.items():
        np.testing.assert_array_equal(found.vectors[name].x.view(torch.int32), values.contiguous().view(torch.int32))
        assert np.array_equal(found.vectors[name].rows, rows)
    assert found.nats[">text"].tobytes() == part.nats[">text"].tobytes()
    assert unpacked(packed([])) == []


def test_the_mark_of_a_sample_is_of_all_its_bytes() -> None:
    """Another key, another byte, or a byte that moved from one part to the next makes another mark."""
    samples = [("k", b"ab", b"c"), ("k", b"a", b"bc"), ("k", b"ab", b"d"), ("l", b"ab", b"c")]
    marks = {sample_digest(Sample(key, {"png": image, "txt": text}, "")) for key, image, text in samples}
    assert len(marks) == 4
    assert sample_digest(Sample("k", {"txt": b"c", "png": b"ab"}, "elsewhere")) in marks


@pytest.mark.parametrize("failing", [0, 2])
def test_what_fails_on_one_rank_is_said_by_the_first_alone(failing: int) -> None:
    """A mistake stays a mistake, a fault of the machine stays one, anything else is named with its rank."""
    for why, kind, said in (
        (UserError("bad shard; copy it again"), UserError, "bad shard; copy it again"),
        (OSError(5, "Input/output error"), OSError, "Input/output error"),
        (KeyError("x"), KeyError if failing == 0 else RuntimeError, "x"),
    ):

        def work(ranks: Threads, why: Exception = why) -> bytes:
            if ranks.rank == failing:
                raise why
            return b"fine"

        first, *others = on_ranks(3, lambda ranks, work=work: together(ranks, lambda: work(ranks)))
        assert isinstance(first, kind) and said in str(first)
        assert failing == 0 or kind is UserError or f"rank {failing}" in str(first)
        assert all(isinstance(other, Said) for other in others)
    assert on_ranks(2, lambda ranks: each(ranks, lambda: ranks.rank)) == [0, 1]


def test_a_mistake_in_the_data_of_one_rank_ends_all(tmp_path: Path) -> None:
    """A .cls that is no number, in a batch that the second rank reads: the first says so, and what to do."""
    samples = {f"{n}": {"image": n, "cls": "x" if n == 4 else "0", "txt": "one"} for n in range(9)}
    spec = shard(tmp_path / "val" / "0.tar", samples)
    made = saved_run(tmp_path, spec)

    def score(ranks: Any) -> Any:
        return evaluate(load_model(made.folder), spec, HOW, ranks=ranks)

    first, other = on_ranks(2, score)
    assert isinstance(first, UserError) and "4: the .cls is no whole number; write the class's place" in str(first)
    assert isinstance(other, Said)


def test_scores_during_training_are_the_same_on_all_numbers_of_ranks(tmp_path: Path) -> None:
    """What one rank would record; the others record nothing, and each model trains on."""
    spec = mixture(tmp_path / "val")
    made = saved_run(tmp_path, spec)

    def score(ranks: Any) -> Any:
        model = load_model(made.folder).train()
        found = scores_during_training(model, made, ranks=ranks)
        assert model.training
        return found[0]

    alone = score(SingleProcess())
    assert alone and on_ranks(3, score) == [alone, {}, {}]


def test_the_first_rank_chooses_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was just written may be seen by the first alone: it is looked for once, and read by all."""
    made, read = saved_run(tmp_path, "x"), list[int | None]()
    listed = [steps_of(made.folder)[-1]]
    monkeypatch.setattr("mmfm.evals.run.newest_step", lambda folder: listed.pop())
    newest = listed[0]

    def load(folder: Path, step: int | None, *, device: Any, ema: bool) -> Any:
        read.append(step)
        return load_model(folder, step, device, ema=ema)

    monkeypatch.setattr("mmfm.evals.run.open_whole", load)
    found = on_ranks(3, lambda ranks: load_shared(made.folder, None, "auto", "cpu", ranks))
    assert not [one for one in found if isinstance(one, Exception)]
    assert read == [newest] * 3 and newest_step(made.folder) == newest


def test_a_run_of_a_gpu_is_evaluated_elsewhere_when_it_is_said(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """No evaluation falls back to the processor in silence; the remedy that is told works."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    spec = mixture(tmp_path / "val")
    made = saved_run(tmp_path, spec)
    place = made.folder / "run.json"
    place.write_text(to_json(replace(made, accelerator="gpu")))
    words = ["eval", str(made.folder), "--data", spec, "--bootstrap", "20", "--max-tokens", "1", "--limit", "4"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "torch finds no GPU here; give --accelerator cpu" in told
    assert main([*words, "--device", "cpu"]) == 0 and (made.folder / "results.json").is_file()


TWO = """
import torch.distributed as dist
from mmfm.config import UserError
from mmfm.runtime.distributed import Said, together
from mmfm.runtime.rendezvous import assembled
try:
    with assembled(0, []) as ranks:
        assert ranks.all_gather_bytes(b"a" * ranks.rank) == [b"", b"a"]
        assert together(ranks, lambda: b"%d" % ranks.rank) == [b"0", b"1"]
        try:
            together(ranks, lambda: b"" if ranks.rank == 0 else int("x").to_bytes())
        except (RuntimeError, Said) as why:
            if ranks.rank == 0:
                print(why, flush=True)
        raise UserError("a mistake that all ranks find")
finally:
    assert not dist.is_initialized()  # a group left open may abort the process at its end
"""


def test_two_processes_of_a_launcher() -> None:
    """Over gloo, as torchrun tells them: bytes of different lengths are collected, a fault crosses processes, and a
    mistake that both find is told by the first alone. That a run was trained here before, which leaves its mark in the
    environment, makes them none of its ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    place["MMFM_PARENT"] = str(os.getpid())
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, "-c", TWO], env=os.environ | place | {"RANK": str(rank)}, **pipes)
        for rank in range(2)
    ]
    (out, told), (silence, quiet) = [process.communicate(timeout=120) for process in started]
    assert out == "rank 1: ValueError: invalid literal for int() with base 10: 'x'\n"
    assert "UserError: a mistake that all ranks find" in told
    assert silence == quiet == "" and [process.returncode for process in started] == [1, 1]


def test_waiting_for_others_hears_ctrl_c_and_a_child_that_died() -> None:
    """A collective that never returns holds neither back."""
    never = threading.Event()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            attend(never.wait, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    killed = "rank 1 was killed by SIGKILL; start the command again"
    suicide = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with subprocess.Popen(suicide) as child, pytest.raises(ChildProcessError, match=killed):
        attend(never.wait, 0, [child])
    never.set()


def test_a_group_that_broke_is_told_by_the_first() -> None:
    """The others leave in silence, whose end the first has seen or will see."""

    def broken() -> None:
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(ChildProcessError, match="a rank ended early"):
        attend(broken, 0)
    with pytest.raises(Said):
        attend(broken, 1)
    with pytest.raises(ZeroDivisionError):
        attend(lambda: 1 / 0, 1)


def test_the_words_of_a_command_make_it_again() -> None:
    """So the other ranks are given what the first was given."""
    for words in (
        ["runs/a"],
        ["runs/a", "--data", "a=b c", "d", "--templates", "a {}.", "--limit", "3", "--ranks", "2"],
    ):
        command = parse(Evaluate, words, "mmfm eval")
        assert parse(Evaluate, words_of(command), "mmfm eval") == command


def test_ranks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A launcher's ranks are what they are; fewer than none cannot be."""
    environment = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(UserError, match=r"--ranks 2, but 4 were launched; leave --ranks out"), assembled(2, []):
            raise AssertionError
    with pytest.raises(UserError, match=r"--ranks -1 must not be negative"), assembled(-1, []):
        raise AssertionError
    with assembled(1, []) as ranks:
        assert ranks.size == 1


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number on the machine; where there are too few that is a mistake, and a run for CPUs takes none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    told = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert device_of_rank("auto") == torch.device("cuda", 1) and device_of_rank("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="rank 2 of this machine has no GPU of its own: there are 2; start fewer ranks"):
        device_of_rank("gpu")
