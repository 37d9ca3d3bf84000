"""What launchers tell a rank, and what comes of it: one run on all of them, or a refusal in one line; never two."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import doomed
import pytest
from launchers import Rank, free_port, srun, start, torchrun
from ranks import on_ranks
from torch.distributed import HashStore
from toys import toy_run

import mmfm
from mmfm.__main__ import main
from mmfm.config import Optim, Parallel, UserError
from mmfm.config.serialization import from_json
from mmfm.doctor.run import _start as examined
from mmfm.models import checkpoint
from mmfm.runtime import process, rendezvous
from mmfm.runtime.distributed import Said, agree, attend, difference, from_first
from mmfm.runtime.launch import HERE, STARTED, Launch, first_process, launched
from mmfm.training.fit import of_launch, status_of

SLURM = srun(1, 4, 7)
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


# What is told


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (torchrun(1, 2, 5), ("torchrun", 1, 2, 1, "", 0)),
        (torchrun(1, 2, 5, LOCAL_RANK="0"), ("torchrun", 1, 2, 0, "", 0)),  # the second machine's first
        (torchrun(3, 4, 5, **{STARTED: "1"}), ("torchrun", 3, 4, 3, HERE, 5)),
        (torchrun(1, 2, 5) | SLURM | {"WORLD_SIZE": "2"}, ("torchrun", 1, 2, 1, "", 0)),  # within a task of srun
        (MPI | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, ("mpirun", 1, 2, 0)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_PORT": "9", "MASTER_ADDR": "a"}, ("mpiexec", 1, 2, 1, "a", 9)),
        ({"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_LOCAL_RANK": "0"}, ("jsrun", 0, 6, 0)),
        (SLURM, ("srun", 1, 4, 1, HERE)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0"}, ("srun", 2, 3, 0, HERE)),
        (SLURM | {"SLURM_NNODES": "2", "MASTER_ADDR": "n1"}, ("srun", 1, 4, 1, "n1")),
        ({}, None),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0", "NODE_RANK": "0"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),  # sbatch, and our own ranks in it
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # a shell of salloc
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, None),
    ],
)
def test_a_rank_knows_its_place(told, expected):
    """By the words of each launcher, the innermost first; alone where there is one of it."""
    found = launched(told)
    assert found == expected or (found is not None and found[: len(expected or ())] == expected)


def test_tasks_of_one_step_meet_at_one_port_and_others_at_another():
    """Below the ports that systems hand out."""
    ports = [launched(srun(rank, 2, job)).port for job in (1, 2) for rank in (0, 1)]
    assert ports[0] == ports[1] != ports[2] == ports[3] and all(20_000 <= port < 32_768 for port in ports)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE=2 says .* RANK is not set; start them with torchrun or srun, or unset it"),
        ({"LOCAL_RANK": "1"}, r"LOCAL_RANK=1 says that there are several ranks"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "a"}, r"NODE_RANK=1 says that there are several ranks"),
        ({"RANK": "1"}, r"RANK=1 needs WORLD_SIZE, and to be below it; set both as torchrun does, or none"),
        (torchrun(2, 2, 5), r"RANK=2 needs WORLD_SIZE, and to be below it"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, r"RANK='x' is no whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"but not MASTER_ADDR and MASTER_PORT; set them as torchrun does"),
        (SLURM | {"WORLD_SIZE": "2"}, r"srun started 4 ranks, but WORLD_SIZE=2; unset it, or start that many"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2"}, r"on 2 machines, which must be told where the first one is: export"),
    ],
)
def test_what_is_half_told_is_refused(told, said):
    """A guess could be a second run in the same folder."""
    with pytest.raises(UserError, match=said) as found:
        launched(told)
    assert "\n" not in str(found.value)


def test_who_speaks(monkeypatch):
    assert first_process()
    for rank in (0, 1):
        for name, value in srun(rank, 2, 7).items():
            monkeypatch.setenv(name, value)
        assert first_process() == (rank == 0)


def test_a_run_takes_the_ranks_that_were_launched(capsys):
    """devices=1, the default, leaves it open, and it is said; another number must be theirs."""
    run, launch = toy_run(), Launch("torchrun", 0, 4, 0, "", 0)
    assert of_launch(run, None) == run and of_launch(run, launch) == replace(run, devices=4)
    assert "one run on the 4 ranks that torchrun started" in capsys.readouterr().err
    assert of_launch(replace(run, devices=4), launch).devices == 4
    with pytest.raises(UserError, match=r"devices=2, but torchrun started 4 ranks; give --devices 4, or start that"):
        of_launch(replace(run, devices=2), launch)


def test_a_run_takes_the_machines_that_were_launched(capsys):
    """As far as the launcher tells of them; devices are the ranks of each, and both may be given."""
    run, two, some = toy_run(), Launch("srun", 5, 8, 1, "", 0, 2), Launch("mpirun", 5, 8, 5, "", 0)
    both = replace(run, devices=4, parallel=Parallel(nodes=2))
    assert of_launch(run, two) == of_launch(both, two) == of_launch(replace(run, devices=4), two) == both
    assert of_launch(both, some) == of_launch(replace(run, parallel=Parallel(nodes=2)), some) == both
    assert both.ranks == 8 and of_launch(run, some).devices == 8
    with pytest.raises(UserError, match=r"parallel\.nodes=3, but srun started ranks on 2; leave nodes out"):
        of_launch(replace(run, parallel=Parallel(nodes=3)), two)
    with pytest.raises(
        UserError, match=r"nothing started ranks on several machines; start the command on each by srun"
    ):
        of_launch(both, None)


def test_a_machine_of_several_is_told():
    """By torchrun and srun; and a rank's number on its machine, where no launcher gives it."""
    many = torchrun(3, 4, 5, LOCAL_RANK="1", GROUP_RANK="1", GROUP_WORLD_SIZE="2")
    assert launched(many) == Launch("torchrun", 3, 4, 1, "", 0, 2)
    found = launched(SLURM | {"SLURM_STEP_NUM_NODES": "2", "MASTER_ADDR": "n1"})
    assert found is not None and found.nodes == 2


def test_ranks_end_with_one_status():
    assert [status_of(why) for why in (KeyboardInterrupt(), process.Stopped(""), UserError(""))] == [130, 75, 2]


# What is agreed


def test_what_differs_is_named_by_the_first():
    """The name, both values, the rank and the remedy; the others leave in silence."""

    def work(ranks: Any) -> None:
        facts = {"step": 3, "the configuration": {"optim": {"lr": 0.1 if ranks.rank == 2 else 0.2, "x": [1]}}}
        agree(ranks, facts, "give all the same")

    first, *others = on_ranks(3, work)
    told = "the configuration.optim.lr is 0.2 on the first rank and 0.1 on rank 2; give all the same"
    assert isinstance(first, UserError) and str(first) == told
    assert all(isinstance(other, Said) for other in others)
    assert on_ranks(2, lambda ranks: agree(ranks, {"a": [1, {"b": None}]}, "")) == [None, None]
    assert difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)


def test_the_first_decides():
    """What another would find is not asked."""
    assert on_ranks(3, lambda ranks: from_first(ranks, lambda: [ranks.rank, None])) == [[0, None]] * 3

    def failing(ranks: Any) -> Any:
        return from_first(ranks, lambda: (_ for _ in ()).throw(UserError("no such folder")))

    first, other = on_ranks(2, failing)
    assert isinstance(first, UserError) and isinstance(other, Said)


@pytest.mark.parametrize(("name", "kind"), [(signal.SIGTERM, process.Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_who_waits_for_other_ranks_hears_signals(name, kind):
    """Whether they come or not: what was asked of this process ends its waiting."""
    never = threading.Event()
    with process.Signals() as signals:
        signal.raise_signal(name)
        with pytest.raises(kind):
            attend(never.wait, 0, heard=signals.obey)
    never.set()


def test_who_waits_in_vain_says_so(monkeypatch):
    """The first of two ranks, and nobody comes."""
    for key, value in torchrun(0, 2, free_port()).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(rendezvous, "MEET_S", 0.3)
    told = "rank 0 waited 0 s for all of the 2 ranks that torchrun told of; start that many"
    with pytest.raises(UserError, match=told), rendezvous.assembled(0, []):
        raise AssertionError


def test_code_is_known_by_its_files(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    one = rendezvous.code(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert rendezvous.code(tmp_path) == one
    (tmp_path / "a.py").write_text("x = 2")
    assert rendezvous.code(tmp_path) != one


def test_a_gpu_that_is_asked_for_must_be_there(monkeypatch):
    """No run falls back to the processor in silence; "auto" takes what there is."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r'accelerator is "gpu", and torch finds no GPU here; give --accelerator cpu'):
        rendezvous.device_of_rank("gpu")
    assert rendezvous.device_of_rank("auto").type == rendezvous.device_of_rank("cpu").type == "cpu"


def test_a_number_is_given_to_one_process_alone():
    """Two launchers at one port, and ranks of a machine with GPUs beside those of one without."""
    store = HashStore()
    place = Launch("torchrun", 1, 2, 1, HERE, 5)
    store.set("mmfm/told/0", "2 ranks on the CPU")
    assert rendezvous._counted(place, store, "the CPU") is store
    with pytest.raises(UserError, match="two processes were told that they are rank 1; start all ranks with one"):
        rendezvous._counted(place, store, "the CPU")
    store = HashStore()
    store.set("mmfm/told/0", "2 ranks on the CPU")
    with pytest.raises(UserError, match="rank 0 knows of 2 ranks on the CPU, and rank 1 of 2 ranks on GPUs"):
        rendezvous._counted(place, store, "GPUs")


def test_a_wrong_accelerator_is_refused_before_torch_would_train(tmp_path, monkeypatch, capsys):
    """By --check and by a start, in one line, whose remedy works; nothing is written."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = str(doomed.toy(tmp_path))
    for more in (("--check",), ()):
        assert main(["train", config, "--accelerator", "gpu", *more]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "torch finds no GPU here; give --accelerator cpu" in told
    assert not (tmp_path / "runs").exists()
    assert main(["train", config, "--accelerator", "cpu", "--check"]) == 0
    run = from_json(Path(config).read_text())
    assert [found.level for found in examined(run)[1].findings] == ["OK"]
    (found,) = examined(replace(run, accelerator="gpu"))[1].findings
    assert found.level == "ERROR" and "torch finds no GPU here" in found.message


# What is trained

STEPS, SAVE = 6, 3
RESUME, TWO = ("--resume",), ("--devices", "2")
SHARDED, LAST = ("--parallel.strategy", "fsdp"), f"checkpoints/step-{STEPS:08d}"


def starts() -> dict[str, list[Rank]]:
    """Two ranks each, but for those that our own first process starts."""
    port, words = free_port, {}

    def pair(name: str, one: dict[str, str], other: dict[str, str], *more: str, odd: str = "", last: Any = ()) -> None:
        run, what = name.split(":")[0], ("--name", name.split(":")[0], *more)
        gone = f"runs/{run}/{LAST}" if RESUME[0] in more else ""
        words[name] = [Rank(told=one, words=what, gone=gone), Rank(told=other, words=(*what, *last), odd=odd)]

    words["own"] = [Rank(told={}, words=("--name", "own", *TWO))]
    words["fsdp"] = [Rank(told={}, words=("--name", "fsdp", *TWO, *SHARDED))]
    words["parts"] = [Rank(told={}, words=("--name", "parts", *TWO, "--parallel.micro-batch", "3"))]
    at = port()
    pair("torchrun", torchrun(0, 2, at), torchrun(1, 2, at))
    pair("srun", srun(0, 2, os.getpid()), srun(1, 2, os.getpid()), *TWO)
    at = port()
    group = {"LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "2"}
    pair("nodes", *(torchrun(rank, 2, at, **group, GROUP_RANK=str(rank)) for rank in (0, 1)), *TWO)
    at = port()
    pair("rate", torchrun(0, 2, at), torchrun(1, 2, at), last=("--optim.lr", "0.5"))
    at = port()
    pair("code", torchrun(0, 2, at), torchrun(1, 2, at), odd="other code")
    at = port()
    pair("sizes", torchrun(0, 2, at), torchrun(1, 3, at))
    at = port()
    pair("torchrun:late", torchrun(0, 2, at), torchrun(1, 2, at), *RESUME, odd="late disk")
    at = port()
    pair("nodes:no disk", torchrun(0, 2, at), torchrun(1, 2, at), *RESUME, odd="no disk")
    return words


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[tuple[int, str, str]]]]:
    folder, wanted = tmp_path_factory.mktemp("started"), starts()
    doomed.toy(folder, optim=Optim(steps=STEPS, lr=3e-3, warmup_steps=2), save_every_steps=SAVE)
    return folder, dict(zip(wanted, start(folder, list(wanted.values())), strict=True))


@pytest.mark.parametrize("name", ["torchrun", "srun", "nodes"])
def test_launched_ranks_train_one_run(started, name):
    """Two ranks of torchrun without --devices, two tasks of srun, and one rank on each of two machines: all end well,
    the first alone tells the folder, whose weights are those of a run that started its own two ranks."""
    folder, found = started
    (own,), ranks = found["own"], found[name]
    assert own[0] == 0 and [status for status, _, _ in ranks] == [0, 0], ranks
    assert [out for _, out, _ in ranks] == [f"{folder}/runs/{name}\n", ""]
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [STEPS]
    kept = from_json((folder / "runs" / name / "run.json").read_text())
    assert (kept.devices, kept.parallel.nodes) == ((1, 2) if name == "nodes" else (2, 1))
    if name == "srun":
        assert doomed.final_weights(folder, name) == doomed.final_weights(folder, "own")


def test_ranks_that_share_the_weights_train_the_same(started):
    """FSDP for DDP: the same losses but for rounding, which is said; and a process alone reads what they wrote."""
    folder, found = started
    assert found["fsdp"][0][0] == 0, found["fsdp"]
    whole, mine = (json.loads((folder / "runs" / name / "metrics.jsonl").read_text()) for name in ("own", "fsdp"))
    for name in (name for name in whole if name.startswith(("loss", "scale")) or name == "grad_norm"):
        assert mine[name] == pytest.approx(whole[name], rel=1e-3), name
    assert "ranks share the model by fsdp, as chosen" in found["fsdp"][0][2]
    assert mmfm.load(str(folder / "runs" / "fsdp")).run.parallel.strategy == "fsdp"


def test_two_ranks_that_read_in_parts_train_the_same(started):
    """Without DistributedDataParallel: gradients are reduced once a step, when all parts are done."""
    folder, found = started
    assert [status for status, _, _ in found["parts"]] == [0], found["parts"]
    whole, parts = (json.loads((folder / "runs" / name / "metrics.jsonl").read_text()) for name in ("own", "parts"))
    for name in (name for name in whole if name.startswith("loss") or name == "grad_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-3), name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rate", "mmfm: the configuration.optim.lr is 0.003 on the first rank and 0.5 on rank 1; all ranks must"),
        ("code", "and another on rank 1; give all ranks the same one"),
        ("sizes", "rank 1 knows of 3 ranks on the CPU, and rank 0 of 2 ranks on the CPU; start all of them with one"),
    ],
)
def test_ranks_that_differ_train_nothing(started, name, said):
    """Configuration, code, number of ranks: the first says what differs, no rank ends well, and nothing is written."""
    folder, found = started
    (status, _, told), (other, _, silence) = found[name]
    assert status == 2 and said in told and other in (1, 2), found[name]
    assert silence == "" or silence.startswith("mmfm: rank 0 knows of 2 ranks on the CPU, and rank 1 of 3")
    assert not (folder / "runs" / name).exists()


def test_the_first_rank_stays_until_the_other_has_read_why():
    """The store is the first rank's: were it gone while the other reads, torch would tell of a broken connection."""
    store, (first, second) = HashStore(), (Launch("toy", rank, size, 0, "", 0) for rank, size in ((0, 2), (1, 3)))

    def read_when_the_first_ends() -> bool:
        with pytest.raises(UserError, match="rank 1 knows of 3 ranks on the CPU, and rank 0 of 2"):
            rendezvous._counted(first, store, "the CPU")
        return store.check(["mmfm/read/1"])

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(read_when_the_first_ends)
        with pytest.raises(UserError, match="rank 0 knows of 2 ranks on the CPU, and rank 1 of 3"):
            rendezvous._counted(second, store, "the CPU")
        assert ended.result()


def test_the_first_rank_chooses_the_checkpoint(started):
    """The other one does not see the newest yet in the folder's list: both go on from it, and no step is another's."""
    folder, found = started
    assert [status for status, _, _ in found["torchrun:late"]] == [0, 0], found["torchrun:late"]
    assert doomed.final_weights(folder, "torchrun") == doomed.final_weights(folder, "own")


def test_a_rank_that_cannot_read_the_checkpoint_is_named(started):
    """With the file; nothing is trained, and what is there stays."""
    folder, found = started
    (status, _, told), (other, _, silence) = found["nodes:no disk"]
    assert status == 2 and other == 1 and silence == ""
    *_, line = told.splitlines()
    assert line.startswith("mmfm: rank 1: ") and "no whole checkpoint" in line
    assert checkpoint.steps_of(folder / "runs" / "nodes") == [SAVE]
