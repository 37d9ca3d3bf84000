"""Batches of a token budget: which samples a step takes follows from the position alone, whatever the ranks, workers
and restarts; ranks are dealt by tokens; and the index says of which tokenizer they are."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mmfm.config import Conformer, Data, Generative, Mel, Model, Optim, Run, Source, TextTower, UserError, Vit
from mmfm.data import index, order
from mmfm.data.batch import Batch
from mmfm.data.stream import TrainStream
from mmfm.datasets.indexing import index_folder
from mmfm.preprocessing.tokenizer import load_tokenizer, train_tokenizer
from mmfm.training import fit
from mmfm.training.module import StreamData

BYTES = load_tokenizer("bytes")
MODEL = Model(
    image=Vit(height_px=8, width_px=16, patch_px=8, channels=1, width=32, heads=2),  # two tokens a picture
    audio=Conformer(mel=Mel(rate_hz=16_000)),
)
BUDGET, MOST, STEPS = 60, 12, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_shard, encode_image, encode_audio, sine):
    """Pictures and clips with texts of 1 to 30 letters, one of 200; counted by bytes."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lengths = [200, *draw.integers(1, 31, 10).tolist()]
    pixels = draw.integers(0, 256, (len(lengths), 8, 16), dtype=np.uint8)
    pictures = {f"i{n}": {"png": encode_image(pixels[n]), "txt": b"x" * length} for n, length in enumerate(lengths)}
    clips = {
        f"a{n}": {"flac": encode_audio(sine(300, 0.1 * (n + 1)), layout="FLAC"), "json": b'{"caption": "a clip"}'}
        for n in range(7)
    }
    write_shard(root / "image-0.tar", pictures)
    write_shard(root / "audio-0.tar", clips)
    index_folder(root, tokenizer="bytes", workers=1, progress=False)
    return root


def run_on(folder, **changes) -> Run:
    sources = (
        Source(shards=f"{folder}/image-0.tar", modalities=("image", "text"), weight=2),
        Source(shards=f"{folder}/audio-0.tar", modalities=("audio", "text")),
    )
    data = Data(**({"train": sources, "batch_size": MOST, "tokens_per_batch": BUDGET, "num_workers": 0} | changes))
    return Run(name="t", model=MODEL, data=data, optim=Optim(steps=STEPS, warmup_steps=1))


def batches(run: Run, rank: int = 0, world: int = 1) -> list[Batch]:
    return list(TrainStream(run, BYTES, rank=rank, world=world))


def tokens_of(batch: Batch) -> int:
    """By what is in the batch: two of a picture, 25 a second of sound, a byte each of a text."""
    each = {"image": lambda x: 2 * len(x.rows), "audio": lambda x: round(float(x.keep.sum()) / 16_000 * 25)}
    return sum(each[name](x) if name in each else int(x.keep.sum()) for name, x in batch.items.items())


def test_a_batch_takes_what_fits() -> None:
    costs = [5, 5, 1, 30, 2, 2, 2, 2, 1]
    found, first = [], 0
    while first < len(costs):
        span = order.within(first, 10, 3, lambda at: costs[at] if at < len(costs) else 99)
        found.append(costs[span.start : span.stop])
        first = span.stop
    assert found == [[5, 5], [1], [30], [2, 2, 2], [2, 1]]


def test_steps_keep_to_the_budget_and_lose_no_sample(folder) -> None:
    """A sample that is larger than the budget is a step of its own; together the steps are the order."""
    run = run_on(folder)
    found, stream = batches(run), TrainStream(run, BYTES, rank=0, world=1)
    assert len(found) == STEPS and all(tokens_of(batch) <= BUDGET or batch.size == 1 for batch in found)
    assert any(tokens_of(batch) > BUDGET for batch in found) and len({batch.size for batch in found}) > 2
    keys = [key for batch in found for key in batch.keys]
    plain = [batch.keys for batch in batches(run_on(folder, tokens_per_batch=0))]
    assert keys == [key for part in plain for key in part][: len(keys)]
    places = [stream.plan.order(position) for position in range(found[0].size)]
    assert sum(stream.plan.tokens(*place) for place in places) == tokens_of(found[0])


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_together_hold_what_one_process_holds(folder, world: int) -> None:
    """Also where the budget leaves less samples than ranks: then a rank's share is empty."""
    run = run_on(folder)
    parts, whole = [batches(run, rank, world) for rank in range(world)], batches(run)
    for step, batch in enumerate(whole):
        assert sorted(batch.keys) == sorted(key for part in parts for key in part[step].keys)
    assert world < 8 or any(part[step].size == 0 for part in parts for step in range(STEPS))


def test_of_one_source(folder) -> None:
    found = batches(run_on(folder, mix_by="batch"))
    assert all(len({key[0] for key in batch.keys}) == 1 for batch in found)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 5])
def test_a_run_goes_on_where_it_was(folder, workers: int, stop: int) -> None:
    run = run_on(folder, num_workers=workers)
    expected = [batch.keys for batch in batches(run_on(folder))]
    before = StreamData(run, BYTES)
    ahead = iter(before.open())
    assert [next(ahead).keys for _ in range(stop)] == expected[:stop]
    after = StreamData(run, BYTES)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert [batch.keys for batch in after.open()] == expected[stop:]
    other = StreamData(replace(run, data=replace(run.data, tokens_per_batch=BUDGET + 1)), BYTES)
    with pytest.raises(UserError, match="not those it was trained on"):
        other.load_state_dict(before.state_dict())


def test_metrics_count_the_samples_that_were_read(folder, tmp_path) -> None:
    """And not batch_size a step, of which a budget takes less."""
    model = replace(MODEL, text=TextTower(width=32, depth=1, heads=2), tokenizer="bytes")
    run = replace(run_on(folder), model=model, generative=(Generative(task=">text"),), accelerator="cpu")
    fit.train(replace(run, out=str(tmp_path)))
    (last,) = map(json.loads, (tmp_path / "t" / "metrics.jsonl").read_text().splitlines())
    read = sum(batch.size for batch in batches(run))
    assert last["step"] == STEPS and read < STEPS * MOST
    assert last["samples_per_s"] / last["steps_per_s"] == pytest.approx(read / STEPS)


def test_one_token(write_shard, tmp_path) -> None:
    write_shard(tmp_path / "one.tar", {"a": {"txt": b"x"}})
    index_folder(tmp_path, tokenizer="bytes", workers=1, progress=False)
    source = Source(shards=f"{tmp_path}/one.tar", modalities=("text",))
    found = batches(run_on(tmp_path, train=(source,), tokens_per_batch=1))
    assert [batch.size for batch in found] == [1] * STEPS


def test_the_index_says_whose_tokens_they_are(folder, tmp_path, write_shard) -> None:
    """Counted anew for another tokenizer, kept for the same; a run with another is refused in one line."""
    write_shard(
        tmp_path / "one.tar", {"a": {"txt": b"some words"}, "b": {"json": b'{"caption": "x"}'}, "c": {"cls": b"1"}}
    )
    own = train_tokenizer(["some words"] * 9, 270)
    (tmp_path / "own.json").write_text(own.to_json())
    shard = tmp_path / "one.tar"
    index_folder(tmp_path, workers=1, progress=False)
    assert index.load(shard, shard.stat().st_size).tokenizer == ""
    run = run_on(tmp_path, train=(Source(shards=str(shard), modalities=("text",)),), max_bad_fraction=0.5)
    with pytest.raises(UserError, match="holds no tokens") as told:
        TrainStream(run, BYTES, rank=0, world=1)
    assert "\n" not in str(told.value) and "--tokenizer" in str(told.value)
    for spec, counts in (("bytes", [10, 1, -1]), (str(tmp_path / "own.json"), [len(own.encode("some words")), 1, -1])):
        index_folder(tmp_path, tokenizer=spec, workers=1, progress=False)
        found = index.load(shard, shard.stat().st_size)
        assert found.tokens.tolist() == counts and found.tokenizer == load_tokenizer(spec).fingerprint
        at = index.index_path(shard).stat().st_mtime_ns
        index_folder(tmp_path, tokenizer=spec, workers=1, progress=False)
        assert index.index_path(shard).stat().st_mtime_ns == at
    with pytest.raises(UserError, match="the tokens of tokenizer"):
        TrainStream(run, BYTES, rank=0, world=1)


def test_every_tar_must_be_counted(tmp_path, write_shard) -> None:
    """Not the first of a source alone; and where the list says so, but the index is another, when that is read."""
    for name in ("one", "two"):
        write_shard(tmp_path / f"{name}.tar", {f"{name}{n}": {"txt": b"some words"} for n in range(6)})
    index_folder(tmp_path, tokenizer="bytes", workers=1, progress=False)
    run = run_on(tmp_path, train=(Source(shards=str(tmp_path), modalities=("text",)),))
    assert len(batches(run)) == STEPS
    listed = (tmp_path / "shards.json").read_text()
    index.write(tmp_path / "two.tar")
    with pytest.raises(UserError, match=r"the index of 'two.tar' holds no tokens.*count them with"):
        batches(run)
    (tmp_path / "shards.json").unlink()
    with pytest.raises(UserError, match=r"the index of '.*: two.tar' holds no tokens.*count them with"):
        TrainStream(run, BYTES, rank=0, world=1)
    (tmp_path / "shards.json").write_text(listed.replace(BYTES.fingerprint, "another"))
    with pytest.raises(UserError, match="holds the tokens of tokenizer another"):
        TrainStream(run, BYTES, rank=0, world=1)
    (tmp_path / "shards.json").write_text(listed.replace(f'"tokenizer": "{BYTES.fingerprint}"', '"scattered": 0'))
    with pytest.raises(UserError, match=r"the index of '.*: two.tar' holds no tokens"):  # of a list from before
        TrainStream(run, BYTES, rank=0, world=1)


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, -2], ["a", 2, 3], [1, 2, 3, 4]])
def test_counts_that_are_none_are_refused(tmp_path, write_shard, counts) -> None:
    shard = tmp_path / "one.tar"
    write_shard(shard, {name: {"txt": b"x"} for name in "abc"})
    index_folder(tmp_path, tokenizer="bytes", workers=1, progress=False)
    path = index.index_path(shard)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": {"tokenizer": "x", "counts": counts}}))
    with pytest.raises(UserError, match="is no index"):
        index.load(shard, shard.stat().st_size)


@pytest.mark.parametrize("alike", [True, False])
def test_eight_ranks_are_within_a_twentieth(alike: bool) -> None:
    """Planted as the set of stamps is: a third pictures of 64 tokens, texts of 5 to 60, sounds of half to 4 seconds."""
    worst, draw = [], np.random.default_rng(0)
    for _ in range(20):
        kinds = draw.integers(0, 3, 256)
        tokens = draw.integers(5, 61, 256) + np.where(
            kinds == 0, 64, np.where(kinds == 1, 25 * draw.uniform(0.5, 4, 256), 0)
        )
        hands = order.deal(tokens.round().tolist(), 8, alike)
        totals = [tokens.round()[hand].sum() for hand in hands]
        assert sorted(at for hand in hands for at in hand) == list(range(256))
        worst.append(max(totals) / np.mean(totals))
    assert max(worst) <= 1.05
    assert not alike or {len(hand) for hand in hands} == {32}


def test_what_a_step_reads_is_told() -> None:
    assert Data(batch_size=1_024).of_a_step == "1,024 samples"
    assert Data(batch_size=64, tokens_per_batch=8_192).of_a_step == "8,192 tokens, at most 64 samples"
