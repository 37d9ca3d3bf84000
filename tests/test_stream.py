"""The order is a bijection per epoch, the stream a function of position: ranks, workers and restarts change nothing."""

import errno
import json
import os
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import mmfm.data.stream as data_stream
from mmfm.__main__ import report
from mmfm.config import MODALITIES, Conformer, Data, Mel, Model, Optim, Run, Source, Text, UserError, Vit
from mmfm.data import index, order, waiting
from mmfm.data import shards as shards_module
from mmfm.data.augment import DRAWS
from mmfm.data.batch import NO_TEXT, Batch
from mmfm.data.decode import Decode, Example, collate, decode_of, read_example, text_hash
from mmfm.data.example_cache import Cache
from mmfm.data.sample import Sample, label_of
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.data.stream import TrainStream
from mmfm.data.worker_transfer import tensors
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
MODEL = Model(
    image=Vit(height_px=8, width_px=16, patch_px=8, channels=1, width=32, heads=2),
    audio=Conformer(mel=Mel(rate_hz=16_000)),
)
DECODE = Decode(max_seconds=9.0)
PICTURES, CLIPS = 11, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_shard, encode_image, encode_audio, sine):
    """Two sources of coprime sizes: 11 pictures in two shards, 7 clips of different lengths; all with texts."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    pixels = random.integers(0, 256, (PICTURES, 8, 16), dtype=np.uint8)
    pictures = {f"i{n}": {"png": encode_image(pixels[n]), "txt": f"picture {n}".encode()} for n in range(PICTURES)}
    clips = {
        f"a{n}": {
            "flac": encode_audio(sine(200 + 50 * n, 0.02 * (n + 1)), layout="FLAC"),
            "txt": f"clip {n % 3}".encode(),
        }
        for n in range(CLIPS)
    }
    write_shard(root / "image-0.tar", dict(list(pictures.items())[:6]))
    write_shard(root / "image-1.tar", dict(list(pictures.items())[6:]))
    write_shard(root / "audio-0.tar", clips)
    return root


def run_on(folder, *, workers=0, batch=12, shares=(2, 1), steps=9, seed=0):
    sources = (
        Source(shards=f"{folder}/image-*.tar", modalities=("image", "text"), weight=shares[0]),
        Source(shards=f"{folder}/audio-0.tar", modalities=("audio", "text"), weight=shares[1]),
    )
    data = Data(train=sources, batch_size=batch, num_workers=workers)
    return Run(name="t", seed=seed, model=MODEL, data=data, optim=Optim(steps=steps, warmup_steps=1))


def stream(run, rank=0, world=1, start=0):
    return TrainStream(run, BYTES, rank=rank, world=world, start=start)


def whole(folder, max_seconds=30.0):
    """All samples of a folder as one batch."""
    shards = Shards(expand(str(folder)))
    return collate([read_example(shards[i], MODEL, Decode(max_seconds=max_seconds)) for i in range(len(shards))], BYTES)


def equal(a: Batch, b: Batch) -> bool:
    """Every field, every tensor, to the bit."""
    if (a.size, a.keys, a.texts, set(a.items)) != (b.size, b.keys, b.texts, set(b.items)):
        return False
    tensors = [(a.positive_ids, b.positive_ids)]
    for name in a.items:
        tensors += [
            (getattr(a.items[name], field), getattr(b.items[name], field)) for field in ("x", "keep", "rows", "draws")
        ]
    return all(x is y is None or (x.dtype == y.dtype and torch.equal(x, y)) for x, y in tensors)


# The order


@pytest.mark.parametrize(("sizes", "shares"), [((11, 7), (2, 1)), ((1, 5, 30), (1, 3, 4)), ((40,), (1,))])
def test_each_epoch_of_each_source_is_a_permutation(sizes, shares):
    """However positions interleave, every source gives each of its samples once per epoch, in a new order each time."""
    seen = [[] for _ in sizes]
    plan = order.Order(3, [[size] for size in sizes], shares)
    for position in range(sum(shares) * 4 * max(sizes)):
        source, sample = plan(position)
        seen[source].append(sample)
    for size, samples in zip(sizes, seen, strict=True):
        epochs = [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]
        assert len(epochs) >= 1 and all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert size < 11 or len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("counts", [[29], [3, 5, 2, 7, 1, 11], [1] * 29])
def test_large_sources_are_shuffled_by_blocks(counts):
    """With blocks of 8, 29 samples in any tars are a permutation per epoch, and tars and blocks change places."""
    plan = order.Order(0, [counts], [1], block=8)
    epochs = [[plan(position)[1] for position in range(29 * e, 29 * (e + 1))] for e in range(12)]
    assert all(sorted(epoch) == list(range(29)) for epoch in epochs)
    assert len({epoch[0] // 8 for epoch in epochs}) > 2 and len({tuple(epoch) for epoch in epochs}) == 12


@pytest.mark.parametrize("block", [4, 8, 100])
def test_what_comes_soon_holds_what_comes(block):
    """The tars to fetch ahead, asked at any position, hold the samples of this block and of all the next one."""
    counts = [3, 5, 2, 7, 1, 11]
    plan, ends = order.Order(1, [counts], [1], block=block), np.cumsum(counts)
    for position in range(29 * 3):
        soon, (_, _, at) = plan.shards_soon(position), plan.place(position)
        last = min(at + block - at % block if 29 % block == 0 else at, 28)
        for later in range(position, position + max(last - at, 0) + 1):
            assert int(ends.searchsorted(plan(later)[1], "right")) in soon
        assert len(soon) == len(set(soon)) <= len(counts)


@pytest.mark.parametrize(("shares", "batch"), [((1, 1), 4), ((3, 1), 6)])
def test_a_batch_of_one_source(shares, batch):
    """With units of a batch every batch is of one source, shares hold over batches, and epochs stay permutations."""
    plan = order.Order(2, [[11], [7]], shares, unit=batch)
    turns = [{plan(n * batch + i)[0] for i in range(batch)} for n in range(4 * sum(shares))]
    assert all(len(turn) == 1 for turn in turns)
    assert [sum(turn == {source} for turn in turns) for source in (0, 1)] == [4 * share for share in shares]
    first = [sample for p in range(40 * batch) for source, sample in [plan(p)] if source == 0][:11]
    assert sorted(first) == list(range(11))


@pytest.mark.parametrize("shares", [(1, 1), (3, 1), (5, 3, 2), (1, 1, 6)])
def test_shares_are_exact_in_every_period_and_spread_within(shares):
    """Every run of sum(shares) positions holds exactly the shares, and no prefix strays by more than one sample."""
    turns = order.spread(shares)
    assert [turns.count(source) for source in range(len(shares))] == list(shares)
    for length in range(len(turns)):
        for source, share in enumerate(shares):
            assert abs(turns[:length].count(source) - length * share / len(turns)) <= 1


def test_seeds_give_different_orders_and_draws():
    """Another seed, another order; draws are uniform, differ between positions, and are the same when asked again."""
    first, second = (tuple(order.Order(seed, [[100]], [1])(p)[1] for p in range(100)) for seed in (0, 1))
    assert first != second and first != tuple(range(100))
    table = order.draws(0, range(500), 64)
    assert np.array_equal(table[17], order.draws(0, [17], 200)[0, :64]) and table.dtype == np.float32
    assert np.array_equal(table[[9, 3, 4, 5, 400]], order.draws(0, [9, 3, 4, 5, 400], 64))
    assert len(np.unique(table)) > 0.99 * table.size and table.min() >= 0 and table.max() < 1
    assert abs(table.mean() - 0.5) < 0.01 and abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.02


# The training stream


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_read_the_order(folder, world):
    """The ranks' batches, side by side, are the one global batch, and its shares hold in each rank's part."""
    run = run_on(folder)
    whole = [batch.keys for batch in stream(run)]
    parts = [list(stream(run, rank, world)) for rank in range(world)]
    assert [sum((part[step].keys for part in parts), ()) for step in range(len(whole))] == whole
    for batch in (batch for part in parts for batch in part):
        kinds = Counter(key[0] for key in batch.keys)
        assert batch.size == 12 // world and abs(kinds["i"] - 2 * batch.size / 3) <= 1
    counts = Counter(key for keys in whole for key in keys)
    images = [count for key, count in counts.items() if key[0] == "i"]
    assert sum(images) == 9 * 8 and max(images) - min(images) <= 1


@pytest.mark.parametrize(("shards", "world", "workers"), [(9, 2, 0), (1, 2, 2), (3, 4, 2)])
def test_no_rank_waits_for_another(tmp_path, write_shard, shards, world, workers):
    """Uneven shards, or fewer of them than loader processes: every rank has as many batches as the others.

    Readers that give whole shards to processes hang here, when one rank runs dry, or find nothing to read.
    """
    for n in range(shards):
        write_shard(tmp_path / f"{n}.tar", {f"{n}-{i}": {"txt": f"{n} {i}".encode()} for i in range(1 + 5 * n)})
    data = Data(train=(Source(shards=str(tmp_path), modalities=("text",)),), batch_size=4, num_workers=workers)
    run = Run(name="t", model=MODEL, data=data, optim=Optim(steps=12, warmup_steps=1))
    ranks = [[batch.size for batch in stream(run, rank, world)] for rank in range(world)]
    assert ranks == [[4 // world] * 12] * world


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder, workers):
    """One or two processes give the batches of none, in the same order, to the bit, draws included."""
    with_workers = list(stream(run_on(folder, workers=workers)))
    assert all(map(equal, with_workers, stream(run_on(folder)))) and len(with_workers) == 9


@pytest.mark.parametrize("limit_bytes", [0, 3_000, 1 << 20])
def test_what_is_kept_decoded_changes_nothing(folder, limit_bytes):
    """Nothing, some or all samples from memory: the same batches; and no more is kept than was allowed."""
    one = stream(run_on(folder))
    cache = one.plan.cache
    cache.left_bytes = limit_bytes
    assert all(map(equal, one, stream(run_on(folder))))
    assert cache.left_bytes >= 0 and bool(cache.found) == (limit_bytes > 0)


def test_the_limit_of_the_cache_counts_all_that_is_kept():
    """Pixels, what they are a view of, the codec's own, codes, texts, and the .json as it was; of each a megabyte."""
    large, image = torch.zeros(1, 1024, 1024, dtype=torch.uint8), torch.zeros(1, 8, 16, dtype=torch.uint8)
    words = Sample("k", {"json": bytes(1 << 20)}, "k")
    holding: list[dict[str, Any]] = [
        {"image": large}, {"image": large[:, :8, :16]}, {"audio": torch.zeros(1 << 18)}, {"raw": {"image": large}},
        {"codes": {"image": torch.zeros(1 << 17, dtype=torch.int64)}}, {"text": "x" * (1 << 20)}, {"words": words},
        {"before": (Example(key="b", raw={"audio": torch.zeros(1 << 18)}),)},
    ]  # fmt: skip
    for held in holding:
        cache = Cache(3)
        for place in range(9):
            cache.keep((0, place), replace(Example(key="k", image=image), **held))
        assert len(cache.found) == 2 and 0 <= cache.left_bytes < 1 << 20


def test_a_damaged_json_that_nothing_reads_is_none_of_ours(tmp_path, write_shard, encode_image):
    """The picture, the .txt, and what is scored without a label are as good as before; who asks for it is told."""
    png = encode_image(np.zeros((8, 16), np.uint8))
    write_shard(tmp_path / "t.tar", {"a": {"png": png, "txt": b"x", "json": b"{"}})
    data = Data(train=(Source(shards=str(tmp_path), modalities=("image", "text")),), batch_size=4, num_workers=0)
    run = Run(name="t", model=MODEL, data=data, optim=Optim(steps=2, warmup_steps=1))
    named = replace(data.train[0], texts=(Text(field="txt"),))
    for source in (data.train[0], replace(data.train[0], modalities=("image",)), named):
        batches = stream(replace(run, data=replace(data, train=(source,))))
        assert len(list(batches)) == 2 and not any(batches.health.skipped())
    sample = Shards([tmp_path / "t.tar"])[0]
    assert read_example(sample, MODEL, DECODE).text == "x" and label_of(sample) is None
    with pytest.raises(UserError, match=r"the \.json is no JSON"):
        asked = replace(named, texts=(Text(field="txt"), Text(field="caption")))
        next(iter(stream(replace(run, data=replace(data, train=(asked,))))))


def test_captions_in_a_list_are_told_with_the_way_to_read_them(tmp_path, write_shard):
    """As CLAP's and others' shards have them: the first words say which field to name, and that works."""
    many = {"text": ["a dog", "a bark"], "tag": []}
    write_shard(tmp_path / "t.tar", {f"{n}": {"json": json.dumps(many).encode()} for n in range(4)})
    source = Source(shards=str(tmp_path), modalities=("text",))
    data = Data(train=(source,), batch_size=4, num_workers=0)
    run = Run(name="t", model=MODEL, data=data, optim=Optim(steps=5, warmup_steps=1))
    with pytest.raises(UserError, match=r'the "text" of its .json is a list of texts, which is read by Source\(texts='):
        stream(run)
    named = replace(source, texts=(Text(field="text"),))
    assert {t for b in stream(replace(run, data=replace(data, train=(named,)))) for t in b.texts} == set(many["text"])


def test_loaders_without_shared_memory_change_nothing(folder, monkeypatch):
    """As in a container whose 64 MB are full: torch would say so in a thread of a loader process, and never send."""
    whole = list(stream(run_on(folder)))

    def full(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </t>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    found = list(stream(run_on(folder, workers=2)))  # forked, and so without shared memory too
    assert len(found) == 9 and all(map(equal, found, whole))
    assert not any(tensor.is_shared() for batch in found for tensor in tensors(batch))


@pytest.mark.parametrize(("workers", "start"), [(0, 4), (2, 4), (0, 9), (1, 8)])
def test_resumed_equals_uninterrupted(folder, workers, start):
    """From batch k on, a new stream gives what the old one would have given; epochs of both sources end in between."""
    whole = list(stream(run_on(folder)))
    resumed = stream(run_on(folder, workers=workers), start=start)
    rest = list(resumed)
    assert len(rest) == 9 - start and all(map(equal, rest, whole[start:])) and resumed.consumed == 9


def test_consumed_counts_what_was_handed_out(folder):
    """It is read when iteration begins, not when the iterator is made, and prefetched batches do not count."""
    run = run_on(folder, workers=1)
    ours = stream(run)
    iterator = iter(ours)
    ours.consumed = 3
    batches = [next(iterator), next(iterator)]
    assert ours.consumed == 5 and len(ours) == 9
    assert [batch.keys for batch in batches] == [batch.keys for batch in stream(run)][3:5]


def test_draws_belong_to_position_and_modality(folder):
    """64 numbers per item, equal for no two items of an epoch nor for the same sample in two epochs."""
    rows = torch.cat([items.draws for batch in stream(run_on(folder)) for items in batch.items.values()])
    assert rows.shape[1] == DRAWS and len(torch.unique(rows, dim=0)) == len(rows)


def test_fingerprint_tells_plans_apart(folder, tmp_path, write_shard):
    """Equal for a moved folder, another rank, other workers; different for all that changes what a batch means."""
    run = run_on(folder)
    same = [stream(run), stream(run, 1, 2), stream(run_on(folder, workers=2)), stream(run_on(folder, steps=99))]
    for name in ("image-0.tar", "image-1.tar", "audio-0.tar"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    same.append(stream(run_on(tmp_path)))
    write_shard(tmp_path / "image-1.tar", {"other": Shards([folder / "image-1.tar"])[0].parts})
    other = [run_on(folder, seed=1), run_on(folder, batch=24), run_on(folder, shares=(1, 1)), run_on(tmp_path)]
    prints = [plan.fingerprint() for plan in [*same, *map(stream, other)]]
    assert len(set(prints[:5])) == 1 and len(set(prints)) == 5


# Batches


def test_padded_collation_equals_single(folder):
    """Each item of a batch, cut to what it keeps, is the item alone; what is kept comes first and padding is zero."""
    shards = Shards(expand(str(folder)))
    examples = [read_example(sample, MODEL, DECODE) for sample in shards]
    batch = collate(examples, BYTES)
    for name, items in batch.items.items():
        for at, row in enumerate(items.rows.tolist()):
            alone = collate([examples[row]], BYTES).items[name]
            length = int(items.keep[at].sum())
            assert items.keep[at, :length].all() and alone.keep.all()
            assert torch.equal(items.x[at] if name == "image" else items.x[at, :length], alone.x[0])
            assert name == "image" or not items.x[at, length:].any()


def test_batch_carries_only_what_exists(folder):
    """Rows rise and name the samples that have the modality; a modality that none has is left out."""
    shards = Shards(expand(str(folder)))
    mixed = [read_example(shards[i], MODEL, DECODE) for i in (0, CLIPS, 1, CLIPS + 1)]
    batch = collate([*mixed, replace(mixed[0], text=None)], BYTES)
    rows = {name: items.rows.tolist() for name, items in batch.items.items()}
    assert rows == {"audio": [0, 2, 4], "image": [1, 3], "text": [0, 1, 2, 3]}
    assert set(collate(mixed[1::2], BYTES).items) == {"image", "text"}
    assert batch.keys == ("a0", "i0", "a1", "i1", "a0") and batch.texts[4] is None and batch.positive_ids[4] == NO_TEXT
    assert [batch.items["text"].x[i, : len(t)].tolist() for i, t in enumerate(batch.texts[:4])] == [
        list(text.encode()) for text in batch.texts[:4]
    ]


def test_same_marks_equal_texts(folder):
    """Samples share a number exactly when they share a text; it fits 63 bits, so no text is NO_TEXT."""
    batch = whole(folder)
    for i in range(batch.size):
        for j in range(batch.size):
            assert (batch.positive_ids[i] == batch.positive_ids[j]) == (batch.texts[i] == batch.texts[j])
    assert min(text_hash(str(i)) for i in range(1_000)) >= 0 > text_hash(None)


def test_what_no_tower_reads_is_not_decoded(folder, tmp_path, write_shard):
    """Without an audio tower, rubbish in .flac does no harm; `provides` hides a modality that the shards do have."""
    write_shard(tmp_path / "t.tar", {"a": {"flac": b"rubbish", "png": b"rubbish", "txt": b"x"}})
    (sample,) = Shards([tmp_path / "t.tar"])
    blind = replace(MODEL, audio=None, image=None)
    assert set(collate([read_example(sample, blind, DECODE)], BYTES).items) == {"text"}
    assert read_example(sample, MODEL, DECODE, wanted=("text",)).text == "x"
    with pytest.raises(BadSample, match=r"t.tar: a: no readable PNG"):
        read_example(sample, MODEL, DECODE)


def test_any_size_and_rate_becomes_the_towers(tmp_path, write_shard, encode_image, encode_audio, sine):
    """A colour JPEG of another shape and an 8 kHz stereo OGG arrive as the model's grey 8 x 16 and 16 kHz mono."""
    wave = np.stack([sine(440.0, 0.5, 8_000)] * 2, axis=1)
    picture = encode_image(np.full((50, 30, 3), 77, np.uint8), "JPEG")
    write_shard(tmp_path / "t.tar", {"a": {"jpg": picture, "ogg": encode_audio(wave, 8_000, "OGG")}})
    batch = whole(tmp_path)
    assert batch.items["image"].x.shape == (1, 1, 8, 16) and (batch.items["image"].x.int() - 77).abs().max() <= 1
    assert batch.items["audio"].x.shape == (1, 8_000) and batch.texts == (None,)
    data = Shards([tmp_path / "t.tar"])[0].parts["ogg"]
    assert torch.equal(batch.items["audio"].x[0], decode_audio(data, rate_hz=16_000, max_seconds=1.0))


# Failure


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory, write_shard, encode_image):
    """Forty pictures with texts, of which the 3rd is cut, the 11th not there and the 29th's text is empty."""
    folder = tmp_path_factory.mktemp("spoiled")
    good = [encode_image(np.full((8, 16), n, np.uint8)) for n in range(40)]
    samples = {f"{n:02d}": {"png": good[n], "txt": f"number {n}".encode()} for n in range(40)}
    samples["03"]["png"] = good[3][:-30]
    del samples["11"]["png"]
    samples["29"]["txt"] = b" "
    write_shard(folder / "t.tar", samples)
    source = Source(shards=str(folder), modalities=("image", "text"), name="pictures")
    data = Data(train=(source,), batch_size=8, num_workers=0, max_bad_fraction=0.1)
    return Run(name="t", model=MODEL, data=data, optim=Optim(steps=15, warmup_steps=1))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (4, 1)])
def test_bad_samples_are_replaced_whatever_the_ranks_and_workers(spoiled, world, workers):
    """The stream is the same, its batches are full, and each bad sample met is counted, with its code, once a time."""
    run = replace(spoiled, data=replace(spoiled.data, num_workers=workers))
    ours = stream(spoiled)
    reference = [batch.keys for batch in ours]
    ranks = [stream(run, rank, world) for rank in range(world)]
    parts = [list(rank) for rank in ranks]
    assert [sum((part[step].keys for part in parts), ()) for step in range(15)] == reference
    taken = [rank.health.drain() for rank in ranks]
    ours.health.add(ours.health.drain())
    ranks[0].health.add([sum(counts) for counts in zip(*taken, strict=True)])
    counts = ranks[0].health.counts()["pictures"]
    assert counts == ours.health.counts()["pictures"]
    assert counts["read"] == 120 + counts["image_damaged"] + counts["missing_image"] + counts["text_empty"]
    assert counts["image_damaged"] >= 3 and counts["missing_image"] >= 3 and counts["text_empty"] >= 3
    assert not {"03", "11", "29"} & {key for keys in reference for key in keys}
    lines = [json.loads(line) for rank in ranks for line in rank.health.skipped()]
    assert {(line["key"], line["code"]) for line in lines} == {
        ("03", "image_damaged"),
        ("11", "missing_image"),
        ("29", "text_empty"),
    }
    assert all(line["source"] == "pictures" and line["shard"].endswith("t.tar") for line in lines)
    assert all("\n" not in line["message"] and line["shard"] in line["message"] for line in lines)


def test_resumed_redraws_alike(spoiled):
    """What replaces a bad sample depends on its position alone: a stream from batch 6 on gives the same."""
    assert [batch.keys for batch in stream(spoiled)][6:] == [batch.keys for batch in stream(spoiled, start=6)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_of_rubbish_stops_in_one_line(tmp_path, write_shard, workers):
    """Eight bad samples in a row: one line, no traceback of a worker, with the source and the last sample's fault."""
    write_shard(tmp_path / "t.tar", {f"{n}": {"png": b"rubbish", "txt": b"x"} for n in range(9)})
    source = Source(shards=str(tmp_path), modalities=("image", "text"), name="bin")
    run = Run(name="t", model=MODEL, data=Data(train=(source,), batch_size=2, num_workers=workers))
    with pytest.raises(UserError, match=r"8 samples of 'bin', .* cannot be used: .*: no readable PNG") as error:
        list(stream(run))
    assert "\n" not in str(error.value)


def test_errors_of_the_machine_are_tried_again_then_raised(folder, monkeypatch):
    """A read that fails twice changes nothing; one that always fails is an error of the machine, never a skip."""
    monkeypatch.setattr(shards_module, "WAITS_S", (0.0, 0.0, 0.0))
    reference, pread, calls = [batch.keys for batch in stream(run_on(folder))], os.pread, []

    def flaky(*arguments):
        calls.append(arguments)
        if len(calls) % 3:
            raise OSError(errno.EIO, "Input/output error")
        return pread(*arguments)

    ours, broken = stream(run_on(folder)), stream(run_on(folder))
    monkeypatch.setattr(shards_module.os, "pread", flaky)
    assert [batch.keys for batch in ours] == reference and sum(ours.health.drain()) == 9 * 12

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shards_module.os, "pread", failing)
    with pytest.raises(OSError, match=r"\.tar cannot be read \(Input/output error\), after 4 tries"):
        list(broken)


def test_a_loader_process_that_dies_is_told_in_one_line():
    """What torch raises then becomes an error of the machine that says how to go on, and torch forgets the process.

    Not with a real one: torch raises in whatever this process does when the signal comes, the test runner included.
    """

    class Batches:
        forgotten = False

        def __iter__(self):
            return self

        def __next__(self):
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\n")

        def _shutdown_workers(self):
            self.forgotten = True

    batches = Batches()
    error = waiting.next_batch(batches)
    assert isinstance(error, ChildProcessError) and batches.forgotten and "\n" not in str(error)
    assert "a loader process was killed, most likely for lack of memory; lower data.num_workers" in str(error)
    assert str(error).endswith("--resume continues from the last whole checkpoint")


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, UnicodeDecodeError])
def test_a_bug_in_a_loader_process_is_told_as_a_bug(folder, monkeypatch, capsys, kind):
    """The process lives, and --resume would meet the same again: the error is named, and where it was raised."""
    arguments = {UnicodeDecodeError: ("utf-8", b"", 0, 1, "a bug")}.get(kind, ("a bug",))

    def broken(*_):
        raise kind(*arguments)

    monkeypatch.setattr(data_stream.Plan, "_load", broken)
    with pytest.raises(Exception, match="in broken") as found:
        list(stream(run_on(folder, workers=1)))
    assert not isinstance(found.value, OSError)
    assert report(found.value, training=True) == 1
    told = capsys.readouterr().err
    assert kind.__name__ in told and "a bug; this is a fault of mmfm" in told.replace("'", "")
    assert "--resume" not in told and told.count("\n") == 1


def test_the_cache_and_random_crops_exclude_each_other(folder):
    run = run_on(folder)
    with pytest.raises(UserError, match=r"data.cache_mb=1 would keep the first crop of each sample"):
        stream(replace(run, data=replace(run.data, cache_mb=1, crop_seconds=0.05)))


def test_crops_of_long_clips_follow_the_position(tmp_path, write_shard, encode_audio, sine):
    """A second of five, another one each epoch, the same when asked again; evaluation hears the middle."""
    wave = np.linspace(-0.5, 0.5, 80_000, dtype=np.float32)
    write_shard(tmp_path / "t.tar", {"a": {"wav": encode_audio(wave, subtype="FLOAT"), "txt": b"x"}})
    source = Source(shards=str(tmp_path), modalities=("audio", "text"))
    data = Data(train=(source,), batch_size=1, num_workers=0, crop_seconds=1.0, max_seconds=2.0)
    run = Run(name="t", model=MODEL, data=data, optim=Optim(steps=4, warmup_steps=1))
    starts = [float(batch.items["audio"].x[0, 0]) for batch in stream(run)]
    assert len(set(starts)) == 4 and starts == [float(batch.items["audio"].x[0, 0]) for batch in stream(run)]
    middle = read_example(Shards([tmp_path / "t.tar"])[0], MODEL, decode_of(data)).audio
    assert len(middle) == 16_000 and torch.equal(middle, torch.from_numpy(wave[32_000:48_000]))


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_one_of_several_texts_by_position(tmp_path, write_shard, encode_image, cache_mb):
    """Of the fields that a sample has, one is drawn by weight, kept pixels or not; the others are never heard of."""
    tree = {"caption": "a", "captions": {"fr": "b", "de": "c"}, "all": ["d", "e"]}
    picture = encode_image(np.zeros((8, 16), np.uint8))
    write_shard(tmp_path / "t.tar", {"a": {"png": picture, "json": json.dumps(tree).encode()}})
    texts = (Text(field="caption", weight=2.0), Text(field="captions.*"), Text(field="all"), Text(field="none"))
    source = Source(shards=str(tmp_path), modalities=("image", "text"), texts=texts)
    data = Data(train=(source,), batch_size=20, num_workers=0, cache_mb=cache_mb)
    run = Run(name="t", model=MODEL, data=data, optim=Optim(steps=12, warmup_steps=1))
    drawn = [batch.texts for batch in stream(run)]
    seen = Counter(text for texts in drawn for text in texts)
    expected = {"a": 120, "b": 30, "c": 30, "d": 30, "e": 30}
    assert set(seen) == set(expected) and all(abs(seen[name] - n) < 5 * n**0.5 for name, n in expected.items())
    assert drawn[7:] == [batch.texts for batch in stream(run, start=7)]


def tokens_of(batch: Batch) -> float:
    each = {"image": lambda items: 2.0 * len(items.rows), "audio": lambda items: float(items.keep.sum()) / 128}
    return sum(each[name](items) for name, items in batch.items.items())


@pytest.mark.parametrize("world", [2, 4])
def test_balanced_ranks_hold_the_same_samples(folder, world):
    """Dealt by length, the ranks' samples together are the step's, equally many each, and their tokens near equal: two
    of a picture, 125 a second of sound."""
    for name in ("image-0", "image-1", "audio-0"):
        index.write(folder / f"{name}.tar")
    run = run_on(folder, shares=(1, 1))
    sources = [replace(source, modalities=source.modalities[:1]) for source in run.data.train]
    model = replace(MODEL, audio=Conformer(mel=Mel(rate_hz=16_000, hop_ms=2.0)))
    run = replace(run, model=model, data=replace(run.data, train=tuple(sources)))
    even = replace(run, data=replace(run.data, balance_by_length=True))
    plain, dealt = ([list(stream(r, rank, world)) for rank in range(world)] for r in (run, even))
    worst = {"plain": 0.0, "dealt": 0.0}
    for step in range(9):
        keys = [sorted(key for part in parts for key in part[step].keys) for parts in (plain, dealt)]
        assert keys[0] == keys[1] and {part[step].size for part in dealt} == {12 // world}
        for name, parts in (("plain", plain), ("dealt", dealt)):
            tokens = [tokens_of(part[step]) for part in parts]
            worst[name] += max(tokens) * world / sum(tokens) / 9
    assert worst["dealt"] < min(1.2, worst["plain"])
    for path in folder.glob("*.idx.json"):
        path.unlink()


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_evaluation_sees_each_sample_once(n, world):
    """Equal numbers of batches for all ranks; together they hold 0 ... n-1 once, in order, and padding is marked."""
    ranks = [order.once(n, 8, rank=rank, world=world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    together = [at for step in zip(*ranks, strict=True) for part in step for at in part]
    assert [at for at in together if at is not None] == list(range(n))
    assert len(together) == -(-n // 8) * 8


def test_source_without_what_it_provides(folder):
    """A declared modality that a sample lacks is refused at the start, by shard and key."""
    source = Source(shards=str(folder), modalities=("image", "text"))
    run = Run(name="t", model=MODEL, data=Data(train=(source,), batch_size=2))
    with pytest.raises(UserError, match=r"audio-0.tar: a0 has no image, which its source provides") as error:
        stream(run)
    assert "\n" not in str(error.value)


def test_plans_that_cannot_be_followed(folder):
    """No source, ranks that do not divide the batch, and shards that are not there."""
    with pytest.raises(UserError, match=r"Data\.train is empty"):
        stream(Run(name="t"))
    with pytest.raises(UserError, match="batch_size=12 is no multiple of the 5 ranks"):
        stream(run_on(folder), 0, 5)
    with pytest.raises(UserError, match="there is no"):
        stream(run_on(folder / "none"))


def test_too_long_clip_names_the_rule(folder):
    """max_seconds holds in evaluation too, and the message says how to raise it."""
    with pytest.raises(BadSample, match=r"a5: the sound lasts 0.12 s, over max_seconds=0.1; cut it or raise the limit"):
        whole(folder, max_seconds=0.1)


def test_modalities_have_their_own_draws(folder):
    """A picture and a clip of one sample do not share the numbers that change them."""
    shards = Shards(expand(str(folder)))
    both = replace(read_example(shards[0], MODEL, DECODE), image=torch.zeros(1, 8, 16, dtype=torch.uint8))
    table = torch.from_numpy(order.draws(0, [0], len(MODALITIES) * DRAWS)).view(1, len(MODALITIES), DRAWS)
    items = collate([both], BYTES, table).items
    assert torch.equal(items["image"].draws, table[:, 0]) and torch.equal(items["audio"].draws, table[:, 1])
