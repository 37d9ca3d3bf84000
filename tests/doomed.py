"""Lives of a toy run, most of which end by violence, and a diary of what every rank did in them.

    python tests/doomed.py FOLDER

lives the lives of FOLDER/lives.json one after the other, each as `mmfm train` in a process group of its own, and writes
their exit statuses. A life kills itself, so that it always does so at the same place. One process imports everything
and is forked for each life; ranks after the first are started by it, as in every run.
"""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MOMENTS = ("step", "saving", "saved")  # after an update; between two files of a checkpoint; when it is whole
NAMES = ("zero", "one", "two", "three")


@dataclass(frozen=True, kw_only=True)
class Life:
    """One start of the run. `moment` at or after `step` is when it happens to it; 0: it may live to its end.

    `what`: "kill" the whole process group; "orphan": kill the first process, while the others are busy for ever;
    "group": SIGTERM to all processes, loaders too; "usr1": SIGUSR1 to the last rank; "error": raised on the last rank.
    `patch`: "nan": the last rank's losses are not numbers; "estimate": a learning rate that asks how long the run is.
    """

    name: str = "toy"
    devices: int = 1
    workers: int = 0
    step: int = 0
    moment: str = "step"
    what: str = "kill"
    patch: str = ""


def toy_shards(folder: Path, samples: int = 24) -> None:
    """Bright quarters of pictures, tones, and their names."""
    import numpy as np
    import soundfile
    from PIL import Image

    draw = np.random.default_rng(0)
    for kind in ("image", "audio"):
        with tarfile.open(folder / f"{kind}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(samples):
                file = io.BytesIO()
                if kind == "image":
                    pixels = draw.integers(0, 60, (8, 16), dtype=np.uint8)
                    pixels[:, 4 * (i % 4) : 4 * (i % 4) + 4] += 150
                    Image.fromarray(pixels).save(file, "PNG")
                else:
                    wave = 0.5 * np.sin(2 * np.pi * 300 * 2 ** (i % 4) * np.arange(1_600) / 16_000)
                    soundfile.write(file, wave + 0.02 * draw.standard_normal(1_600), 16_000, format="FLAC")
                extension = {"image": "png", "audio": "flac"}[kind]
                for name, data in ((extension, file.getvalue()), ("txt", NAMES[i % 4].encode())):
                    info = tarfile.TarInfo(f"{kind}{i:03d}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def toy(folder: Path, tokens: int = 0, **changes: Any) -> Path:
    """Writes FOLDER/toy.json, the configuration of a run over toy shards, into FOLDER/runs. tokens: of a step, at the
    most."""
    from toys import toy_config

    from mmfm.config import Augment, Contrastive, Data, Generative, Optim, Run, Source
    from mmfm.config.serialization import to_json
    from mmfm.datasets.indexing import index_folder

    toy_shards(folder)
    sources = tuple(
        Source(shards=str(folder / f"{kind}.tar"), modalities=(kind, "text"), name=kind) for kind in ("image", "audio")
    )
    augment = Augment(translate=0.1, speed=0.1, time_mask=3, source_token_dropout=0.1, target_token_dropout=0.1)
    run = Run(
        name="toy",
        out=str(folder / "runs"),
        model=toy_config(dropout=0.1),
        data=Data(train=sources, val=str(folder / "image.tar"), batch_size=8, num_workers=0, augment=augment),
        contrastive=(Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text"))),
        generative=(Generative(task="image>text"), Generative(task="audio>text")),
        optim=Optim(steps=20, lr=3e-3, warmup_steps=5),
        save_every_steps=5,
        accelerator="cpu",
    )
    if tokens:
        index_folder(folder, tokenizer="bytes", workers=1, progress=False)
        run = replace(run, data=replace(run.data, tokens_per_batch=tokens))
    path = folder / "toy.json"
    path.write_text(to_json(replace(run, **changes)), encoding="utf-8")
    return path


def live(folder: Path, lives: Sequence[Life], timeout_s: float = 900) -> list[int]:
    """Exit statuses of the lives; minus the signal, of one that was killed. What they said is in FOLDER/said-N.txt.

    Every process of a life holds its output open: this returns only when none of them is left.
    """
    (folder / "lives.json").write_text(json.dumps([asdict(life) for life in lives]))
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=timeout_s, env=plain_environment())
    return json.loads((folder / "statuses.json").read_text())


def said(folder: Path, number: int) -> str:
    return (folder / f"said-{number}.txt").read_text()


def plain_environment() -> dict[str, str]:
    """Without what a test process has been told of ranks."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MMFM_PARENT", "MMFM_STARTED")
    return {name: value for name, value in os.environ.items() if name not in ranks} | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a rank did in a step: the keys of its samples, its share of each loss as hex."""

    life: int
    name: str
    rank: int
    pid: int
    step: int
    keys: tuple[str, ...]
    losses: tuple[str, ...]


def diary(folder: Path, name: str = "toy") -> list[Entry]:
    lines = [json.loads(line) for line in (folder / "diary.jsonl").read_text().splitlines()]
    entries = [Entry(**{key: tuple(v) if isinstance(v, list) else v for key, v in line.items()}) for line in lines]
    return [entry for entry in entries if entry.name == name]


def mismatches(expected: Sequence[Entry], found: Sequence[Entry]) -> int:
    """Steps of any rank that were not as in the uninterrupted run, or not made at all."""
    table = {(entry.step, entry.rank): (entry.keys, entry.losses) for entry in expected}
    made = {(entry.step, entry.rank) for entry in found}
    wrong = [e for e in found if table.get((e.step, e.rank)) != (e.keys, e.losses)]
    return len(wrong) + len(table.keys() - made)


def final_weights(folder: Path, name: str = "toy") -> dict[str, int]:
    """CRC-32 of the files of the newest checkpoint's weights."""
    newest = max((folder / "runs" / name / "checkpoints").glob("step-????????"))
    files = json.loads((newest / "manifest.json").read_text())["files"]
    return {name: told["crc32"] for name, told in files.items() if name.startswith("model")}


def deaths(count: int, steps: int, seed: int, shape: Mapping[str, Any]) -> Iterator[Life]:
    """`count` lives that are killed at random steps and moments, a little later each, and one that ends."""
    draw = random.Random(seed)
    for i in range(count):
        at = 1 + (steps - 2) * i // count + draw.randrange(-2, 4)
        yield Life(step=min(max(1, at), steps - 5), moment=draw.choice(MOMENTS), **shape)
    yield Life(**shape)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    kills: int
    steps: int  # of all lives, over all ranks
    mismatches: int
    equal_weights: bool


CASES = ((1, 0, 20), (2, 2, 20), (4, 0, 3))  # ranks, loader processes of each, kills


def kill_and_compare(
    folder: Path, *, kills: int, seed: int, devices: int = 1, workers: int = 0, **changes: Any
) -> Outcome:
    """A run killed again and again against one that never was."""
    from mmfm.config import Optim

    steps = 3 * kills + 10
    shape = {"devices": devices, "workers": workers}
    toy(folder, optim=Optim(steps=steps, lr=3e-3, warmup_steps=5), **changes)
    statuses = live(folder, [Life(name="whole", **shape), *deaths(kills, steps, seed, shape)])
    assert statuses == [0, *[-signal.SIGKILL] * kills, 0], statuses
    whole, killed = diary(folder, "whole"), diary(folder)
    return Outcome(
        kills=kills,
        steps=len(killed),
        mismatches=mismatches(whole, killed),
        equal_weights=final_weights(folder, "whole") == final_weights(folder),
    )


MOVES = ((1, 0), (2, 3), (4, 1), (1, 2))  # ranks and loader processes, one after the other
MOVE_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Moved:
    moves: tuple[tuple[int, int], ...]
    steps: int
    other_samples: int  # steps whose samples, over all ranks, were not those of one rank, in this order
    largest_difference: float  # of a loss, summed over ranks


def move_and_compare(folder: Path, **changes: Any) -> Moved:
    """A run that goes on with other numbers of ranks and loader processes, against one of a single rank; its dropout
    belongs to positions, so that it moves along."""

    from mmfm.config import Optim

    steps = MOVE_STEPS * len(MOVES)
    toy(folder, optim=Optim(steps=steps, lr=3e-3, warmup_steps=5), save_every_steps=10, **changes)
    ends = [MOVE_STEPS * (i + 1) for i in range(len(MOVES) - 1)]
    shapes = [{"devices": ranks, "workers": workers} for ranks, workers in MOVES]
    lives = [Life(step=end, moment="saved", **shape) for end, shape in zip(ends, shapes, strict=False)]
    statuses = live(folder, [Life(name="whole"), *lives, Life(**shapes[-1])])
    assert statuses == [0, *[-signal.SIGKILL] * len(lives), 0], statuses
    expected, found = (together(diary(folder, name)) for name in ("whole", "toy"))
    assert expected.keys() == found.keys() == set(range(1, steps + 1))
    differences = [abs(a - b) for step in found for a, b in zip(expected[step][1], found[step][1], strict=True)]
    return Moved(
        moves=MOVES,
        steps=steps,
        other_samples=sum(expected[step][0] != found[step][0] for step in found),
        largest_difference=max(differences),
    )


def together(entries: Sequence[Entry]) -> dict[int, tuple[list[str], list[float]]]:
    """Step -> the samples of all ranks in order, the sums of their shares of each loss."""
    steps: dict[int, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.step, entry.rank)):
        steps.setdefault(entry.step, []).append(entry)
    keys = {step: [key for entry in parts for key in entry.keys] for step, parts in steps.items()}
    losses = {step: [[float.fromhex(x) for x in entry.losses] for entry in parts] for step, parts in steps.items()}
    return {step: (keys[step], [sum(shares) for shares in zip(*losses[step], strict=True)]) for step in steps}


def import_once() -> None:
    """All that a run imports, for those that are forked from here."""
    import torch.utils.tensorboard  # noqa: F401
    import tyro  # noqa: F401

    import mmfm.cli
    import mmfm.training.fit  # noqa: F401


class Forked(subprocess.Popen):
    """A further rank: a child of the first, as one that it starts, with all imports; it waits for its environment."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.args, self.stdin, self.stdout, self.stderr = "rank", None, None, None
        self.returncode, self._child_created, self._waitpid_lock = None, True, threading.Lock()
        gate, self.gate = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(gate)
            return
        os.close(self.gate)
        os.setpgid(0, 0)
        with open(gate) as told:
            environment = told.readline()  # to the end it would wait for the other ranks, which hold this open too
        if not environment:  # the first has ended before it started any
            os._exit(0)
        os.environ.update(json.loads(environment))
        for handle in (0, 1):
            os.dup2(os.open(os.devnull, os.O_RDWR), handle)
        sys.exit(work())

    def begin(self, environment: Mapping[str, str]) -> "Forked":
        with open(self.gate, "w") as told:
            print(json.dumps(dict(environment)), file=told)
        return self


def fork_ranks(count: int, work: Callable[[], int]) -> None:
    """Ranks are forked here instead of being started, with the environment that they would be started with."""
    from mmfm.runtime import launch

    waiting = [Forked(work) for _ in range(1, count)]
    begin = lambda command, env, **_: waiting.pop(0).begin(env)  # noqa: E731
    launch.subprocess = SimpleNamespace(**(vars(subprocess) | {"Popen": begin}))  # type: ignore[attr-defined]


def one_life(folder: Path, number: int, life: Life) -> int:
    """`mmfm train`, with a diary and a fate."""
    from mmfm.__main__ import main
    from mmfm.models import checkpoint
    from mmfm.training import fit

    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not rank:
        fork_ranks(life.devices, lambda: one_life(folder, number, life))
    pages = os.open(folder / "diary.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    last = {"step": 0, "files": 0}

    def fate(moment: str) -> None:
        if life.step and moment == life.moment and last["step"] >= life.step:
            strike(life, rank)

    class Diary(fit.MetricsLogger):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            last["step"] = trainer.global_step
            losses = [float(value).hex() for value in outputs["losses"].values()]
            at = {"life": number, "name": life.name, "rank": rank, "pid": os.getpid(), "step": last["step"]}
            os.write(pages, json.dumps(at | {"keys": batch.keys, "losses": losses}).encode() + b"\n")
            super().on_train_batch_end(trainer, module, outputs, batch, index)
            fate("step")

    class Saves(fit.CheckpointSaver):
        def after_step(self, trainer: Any, module: Any, losses: Mapping[str, Any]) -> None:
            super().after_step(trainer, module, losses)
            if self.agree.save:
                fate("saved")

    write_file = checkpoint.write_file

    def write(path: Path, data: Any) -> Any:
        written = write_file(path, data)
        last["files"] += path.parent.name.startswith(".step-")
        if last["files"] % 3 == 2:
            fate("saving")
        return written

    PATCHES[life.patch](life)
    fit.MetricsLogger, fit.CheckpointSaver, checkpoint.write_file = Diary, Saves, write
    resume = ["--resume"] * (folder / "runs" / life.name / "run.json").exists()
    shape = ["--name", life.name, "--devices", str(life.devices), "--data.num_workers", str(life.workers)]
    return main(["train", str(folder / "toy.json"), *resume, *shape])


def strike(life: Life, rank: int) -> None:
    last = rank == life.devices - 1
    if life.what == "kill" and rank == 0:
        os.killpg(0, signal.SIGKILL)
    elif life.what == "group" and rank == 0:
        if not (sender := os.fork()):  # not the first process itself: from it loaders would obey
            os.killpg(0, signal.SIGTERM)
            os._exit(0)
        os.waitpid(sender, 0)
    elif life.what == "orphan":
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    elif life.what == "usr1" and last:
        signal.raise_signal(signal.SIGUSR1)
    elif life.what == "error" and last:
        from mmfm.config import UserError

        raise UserError("as planned")


def patch_nan(life: Life) -> None:
    from mmfm.objectives.joint import Objectives

    total = Objectives.total
    if int(os.environ.get("LOCAL_RANK", "0")) == life.devices - 1:
        Objectives.total = lambda self, losses: total(self, losses) * float("nan")


def patch_estimate(life: Life) -> None:
    from mmfm.training.module import JointModule

    configure = JointModule.configure_optimizers

    def asking(self: JointModule) -> Any:
        assert self.trainer.estimated_stepping_batches == self.run.optim.steps
        return configure(self)

    JointModule.configure_optimizers = asking


PATCHES = {"": lambda life: None, "nan": patch_nan, "estimate": patch_estimate}


def main(folder: Path) -> None:
    lives = [Life(**life) for life in json.loads((folder / "lives.json").read_text())]
    import_once()
    statuses = []
    for number, life in enumerate(lives):
        if not (child := os.fork()):
            os.setsid()
            os.dup2(os.open(folder / f"said-{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            sys.exit(one_life(folder, number, life))
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    (folder / "statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
