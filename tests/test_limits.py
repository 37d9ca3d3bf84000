"""Texts have a limit, as sounds have: which it is, what is read of a longer one, and that all who read do alike."""

import warnings
from dataclasses import replace

import pytest
import torch
from planted import read
from toys import PAIRS, toy_batch, toy_config, toy_model, toy_run

from mmfm.config import Contrastive, Data, Generative, Run, Source, TextTower, TokenizerSpec, Trunk, UserError
from mmfm.config.task import parse
from mmfm.data.bad_samples import BadSampleCounter
from mmfm.data.batch import Ids
from mmfm.data.decode import Example, collate, require_short
from mmfm.data.remote_cache import ShardCache
from mmfm.data.stream import TrainStream
from mmfm.doctor.scan import lengths, presence, scan
from mmfm.doctor.shard_integrity import look, sets_of
from mmfm.evals.config import EvalConfig
from mmfm.generation import GenerationConfig, fill, write
from mmfm.inference.interface import Interface
from mmfm.inference.likelihood import in_parts
from mmfm.models.model import build
from mmfm.models.transformer import UnifiedTransformer
from mmfm.objectives.task_pass import forward_task
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.text_limits import Limits, check_window, limits_of
from mmfm.preprocessing.tokenizer import Reader, Tokenizer, load_tokenizer
from mmfm.training.preflight import check

BYTES = load_tokenizer("bytes")
LONG = "b" * 100_000


def run_of(most: int = 2_048, long_text: str = "truncate", generative=(), contrastive=(), **model: object) -> Run:
    data = Data(max_text_tokens=most, long_text=long_text)  # pyright: ignore[reportArgumentType]
    return Run(name="limits", model=toy_config(**model), data=data, generative=generative, contrastive=contrastive)


IMAGE_TOKENS = 8  # of the toy pictures
SEVEN = TextTower(width=16, depth=1, heads=2, context=7)
THIRTY = Trunk(width=16, depth=1, heads=4, kv_heads=2, max_position_embeddings=30)


@pytest.mark.parametrize(
    ("run", "read", "written", "by"),
    [
        (run_of(), 2_048, 2_048, "data"),
        (run_of(0), 0, 0, "data"),
        (run_of(text=SEVEN, contrastive=PAIRS[:1]), 7, 7, "tower"),
        (run_of(text=SEVEN, generative=(Generative(task="image>text"),)), 7, 2_048, "tower"),
        (run_of(5, text=SEVEN, contrastive=PAIRS[:1]), 5, 5, "data"),
        (run_of(0, trunk=THIRTY, contrastive=PAIRS[:1]), 29, 29, "window"),
        (
            run_of(trunk=THIRTY, generative=(Generative(task="image>text"),)),
            30 - (IMAGE_TOKENS + 1) - 1, 30 - (IMAGE_TOKENS + 1) - 1, "window",
        ),
        (
            run_of(trunk=THIRTY, generative=(Generative(task="image,text>text"),)),
            (30 - (IMAGE_TOKENS + 1)) // 2 - 1, (30 - (IMAGE_TOKENS + 1)) // 2 - 1, "window",
        ),
    ],
)  # fmt: skip
def test_the_least_bound_counts(run: Run, read: int, written: int, by: str) -> None:
    """What the data says, the tower's positions, the window less what else a sentence holds: two texts share it."""
    assert limits_of(run) == Limits(read=read, written=written, by=by)


@pytest.mark.parametrize("task", ["image>text", "image,text>text", "text>text", ">text", "text~", "image>text~"])
def test_texts_at_the_limit_fill_the_window_and_no_more(task: str) -> None:
    """Of any length, cut at the limit the sentence is read; a token more of each would be over the window."""
    run = run_of(trunk=THIRTY, generative=(Generative(task=task),))
    limits = limits_of(run)
    model = build(run.model, 256).eval()
    image = torch.zeros(1, 8, 16, dtype=torch.uint8)
    over = replace(BYTES, limits=replace(limits, read=limits.read + 1, written=limits.written + 1))
    for tokenizer, fits in ((replace(BYTES, limits=limits), True), (over, False)):
        first = Example(key="a", text="x" * 500)
        batch = collate([Example(key="a", image=image, text="y" * 500, before=(first,))], tokenizer)
        if fits:
            assert forward_task(model, parse(task), batch) is not None
        else:
            with pytest.raises(UserError, match=r"Trunk\.max_position_embeddings=30"):
                forward_task(model, parse(task), batch)


def test_the_window_counts_real_tokens_alone() -> None:
    """Padding to the double does not refuse what fits, and gives what it gives alone; the cache counts alike."""
    model = toy_model(trunk=Trunk(width=16, depth=2, heads=4, kv_heads=2, max_position_embeddings=16))
    batch = toy_batch()
    text = batch.items["text"]
    wide = replace(text, x=torch.nn.functional.pad(text.x, (0, 20)), keep=torch.nn.functional.pad(text.keep, (0, 20)))
    padded = replace(batch, items={**batch.items, "text": replace(wide, written=Ids(wide.x, wide.keep))})
    alone, found = forward_task(model, parse("image>text"), batch), forward_task(model, parse("image>text"), padded)
    assert alone is not None and found is not None
    torch.testing.assert_close(found.states, alone.states)
    trunk = model.trunk
    assert isinstance(trunk, UnifiedTransformer)
    cache = trunk.new_cache()
    keep = torch.arange(14) < torch.tensor([[3], [5]])
    trunk([model.target(torch.zeros(2, 14, dtype=torch.int64), keep)], cache)
    for _ in range(11):
        trunk.step(torch.zeros(2, 1, 16, dtype=torch.float64), cache)
    with pytest.raises(UserError, match="a sentence of 17 tokens"):
        trunk.step(torch.zeros(2, 1, 16, dtype=torch.float64), cache)
    cache = trunk.new_cache()
    trunk([model.target(torch.zeros(2, 14, dtype=torch.int64), keep)], cache)
    cache.reorder(torch.tensor([0]))
    for _ in range(13):  # the longer row has left
        trunk.step(torch.zeros(1, 1, 16, dtype=torch.float64), cache)


def test_a_continuation_that_cannot_fit_is_refused_before_it_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of nine in a window of twelve has room for three: four are refused in one line, whose remedy works."""
    model = toy_model(trunk=Trunk(width=16, depth=1, heads=4, kv_heads=2, max_position_embeddings=12))
    batch, task = toy_batch(), parse("image>text")
    calls: list[int] = []
    forward = UnifiedTransformer.forward
    monkeypatch.setattr(UnifiedTransformer, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    with pytest.raises(
        UserError, match=r"9 tokens .* 4 .* Trunk\.max_position_embeddings=12; give max_tokens=3"
    ) as caught:
        write(model, task, batch, GenerationConfig(max_tokens=4))
    assert not calls and "\n" not in str(caught.value)
    assert max(map(len, write(model, task, batch, GenerationConfig(max_tokens=3)).ids)) <= 3
    every = toy_batch().items["text"]
    given = Ids(torch.zeros(6, 6, dtype=torch.int64), torch.ones(6, 6, dtype=torch.bool))
    with pytest.raises(UserError, match=r"Trunk\.max_position_embeddings=12"):
        fill(model, parse("image>text~"), batch, given, given.keep, GenerationConfig(num_steps=1))
    assert every is not None


def test_a_text_that_was_cut_has_no_end() -> None:
    """The labels of one that was cut are its tokens alone; of a whole one the end too: none learns to stop there."""
    tokenizer = replace(load_tokenizer("bytes"), limits=Limits(read=4, written=4))
    wide = build(toy_config(), 256).eval()
    batch = collate(
        [Example(key="a", text="abcdef"), Example(key="b", text="abcd"), Example(key="c", text="ab")], tokenizer
    )
    assert batch.truncated == (0,) and batch.items["text"].keep.sum(1).tolist() == [4, 4, 2]
    found = forward_task(wide, parse(">text"), batch)
    assert found is not None
    ends = found.labels == wide.vocabulary.end
    assert found.sample_ids[ends].tolist() == [1, 2]
    assert torch.bincount(found.sample_ids).tolist() == [4, 5, 3]


def test_the_tower_reads_less_than_is_written() -> None:
    """Where no task reads texts, positions for two tokens do not cut what is written."""
    batch = collate([Example(key="a", text="abcd"), Example(key="b", text="a")], replace(BYTES, limits=Limits(read=2)))
    text = batch.items["text"]
    assert text.keep.sum(1).tolist() == [2, 1] and text.cut is None and batch.truncated == (0,)
    assert text.written is not None and text.written.keep.sum(1).tolist() == [4, 1]


def test_a_reader_is_bounded_too() -> None:
    """A tower's own tokenizer: marks stand around what is left, and what it has positions for is the most."""
    words = TokenizerSpec(context=8, begin=(1,), end=(2,), pad=0, sha256="")
    for most, kept in ((0, 6), (3, 3), (90, 6)):
        tokenizer = replace(Tokenizer(BYTES.inner, Reader(BYTES.inner, words, "")), limits=Limits(read=most))
        assert tokenizer.read("abcdefgh") == [1, *b"abcdefgh"[:kept], 2]
        assert tokenizer.excess("abcdefgh") and not tokenizer.excess("abc")
        assert tokenizer.held("abcdefgh").written == [*b"abcdefgh"]


def test_a_long_text_is_skipped_by_choice() -> None:
    tokenizer = BYTES.limited(run_of(5, "skip"))
    require_short(Example(key="a", text="short"), tokenizer, "here")
    for example in (
        Example(key="a", text="longer"),
        Example(key="a", text="a", before=(Example(key="a", text="longer"),)),
    ):
        with pytest.raises(
            BadSample, match=r"here: a text of 6 tokens is longer than the 5 .*raise data\.max_text_tokens"
        ) as caught:
            require_short(example, tokenizer, "here")
        assert caught.value.code == "text_too_long"
    require_short(Example(key="a", text="longer"), BYTES.limited(run_of(5)), "here")


@pytest.fixture
def shard(tmp_path, write_shard):
    """Of five texts two are too long for ten tokens, one by 100 kB."""
    texts = ["short", "this is longer", "tiny", LONG, "also"]
    return write_shard(tmp_path / "a-000000.tar", {f"k{i}": {"txt": text.encode()} for i, text in enumerate(texts)})


def text_run(shard, long_text: str = "truncate", **data: object) -> Run:
    source = Source(shards=str(shard), modalities=("text",))
    more = {
        "train": (source,),
        "batch_size": 5,
        "num_workers": 0,
        "max_text_tokens": 10,
        "long_text": long_text,
        "max_bad_fraction": 1.0,
    }
    return toy_run(data=Data(**(more | data)), generative=(Generative(task=">text"),), contrastive=())


@pytest.mark.parametrize("long_text", ["truncate", "skip"])
def test_training_cuts_or_skips_and_counts(shard, long_text: str) -> None:
    """Two of five are cut, and counted; or replaced by others, and counted as what cannot be used."""
    run = text_run(shard, long_text)
    stream = TrainStream(run, BYTES.limited(run), rank=0, world=1)
    batch = next(iter(stream))
    stream.health.add(stream.health.drain())
    counts = stream.health.counts()[str(shard)]
    assert int(batch.items["text"].keep.sum(1).max()) == (10 if long_text == "truncate" else 5)
    if long_text == "truncate":
        assert counts == {"read": 5, "truncated": 2} and "2 of 5 samples" in stream.health.told()
        assert len(batch.truncated) == 2 and batch.size == 5
    else:
        assert counts["text_too_long"] == counts["read"] - 5 >= 2 and stream.health.told() == ""


def test_the_count_survives_and_old_checkpoints_have_none() -> None:
    health = BadSampleCounter(["a", "b"], 1.0)
    health.record([3, 4], [], [1, 2])
    health.add(health.drain())
    again = BadSampleCounter(["a", "b"], 1.0)
    again.load(health.state())
    assert again.counts() == health.counts() == {"a": {"read": 3, "truncated": 1}, "b": {"read": 4, "truncated": 2}}
    old = {name: value for name, value in health.state().items() if name != "truncated"}
    again.load(old)
    assert again.counts() == {"a": {"read": 3}, "b": {"read": 4}} and not any(again.drain())


def interface_of(run: Run) -> Interface:
    torch.manual_seed(0)
    return Interface(build(run.model, BYTES.size, run.contrastive).eval(), run, BYTES)


@pytest.mark.parametrize("long_text", ["truncate", "skip"])
def test_evaluation_does_alike_and_says_so(shard, long_text: str) -> None:
    """100 kB among short texts is read in no time and little memory; no likelihood is made up of half a text."""
    run = replace(text_run(shard, long_text), contrastive=(Contrastive(pair=("image", "text")),))
    found = read(interface_of(run), str(shard), EvalConfig(batch_size=5, max_tokens=4))
    left_out = [row for row, nats in enumerate(found.nats[">text"]) if nats != nats]
    assert left_out == [1, 3]
    assert (found.truncated, sorted(found.bad)) == ((2, []) if long_text == "truncate" else (0, [1, 3]))
    assert set(found.bad.values()) <= {"text_too_long"}


def test_python_cuts_aloud_or_refuses() -> None:
    """The beginning counts, with a warning; where long texts are skipped one is refused. Prompts are refused."""
    model = interface_of(run_of(5, contrastive=PAIRS[:1], generative=(Generative(task="text>text"),)))
    with pytest.warns(UserWarning, match="a text of 100004 tokens is longer than the 5"):
        found = model.encode_text(["hello", LONG.replace("b", "hello", 1)])
    torch.testing.assert_close(found[0], found[1])
    with warnings.catch_warnings(action="error"):
        torch.testing.assert_close(model.encode_text(["hello"]), found[:1])
    with pytest.raises(UserError, match="6 tokens is longer than the 5"):
        model.generate("text>text", text="longer")
    strict = interface_of(run_of(5, "skip", contrastive=PAIRS[:1]))
    with pytest.raises(UserError, match=r"set data\.long_text='truncate'"):
        strict.encode_text(["hello", "longer"])


def test_many_long_texts_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups of like length, and each text as it is alone; likelihoods too."""
    assert in_parts([3, 1, 2], 9) == [([0, 1, 2], 3)] and in_parts([], 9) == []
    assert in_parts([9, 1, 2, 1], 9) == [([0], 9), ([1, 2, 3], 2)] and in_parts([20], 9) == [([0], 20)]
    assert in_parts([9, 1, 1, 5], 20) == [([0, 3], 9), ([1, 2], 1)]
    model = interface_of(run_of(contrastive=PAIRS[:1], generative=(Generative(task=">text"),)))
    texts = ["a", "b" * 40, "cc", "d" * 39, ""]
    batch = collate([Example(key=text, text=text) for text in texts[:4]], BYTES)
    whole, nats = model.encode_text(texts), model.nats(">text", batch)
    monkeypatch.setattr("mmfm.inference.likelihood.AT_ONCE", 60)
    torch.testing.assert_close(model.encode_text(texts), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.nats(">text", batch), nats, atol=1e-3, rtol=1e-4)


def test_no_square_of_a_text_is_made() -> None:
    """What is only read needs no place for each pair of its tokens."""
    model = toy_model()
    keep = torch.arange(5) < torch.tensor([[5], [3]])
    segment = model.enter("text", model.towers["text"](torch.zeros(2, 5, dtype=torch.int64), keep))
    assert UnifiedTransformer._mask([segment], segment.tokens.keep, None).shape == (2, 1, 1, 6)
    both = [segment, model.target(torch.zeros(2, 5, dtype=torch.int64), keep)]
    assert UnifiedTransformer._mask(both, torch.cat([segment.tokens.keep, keep], 1), None).shape == (2, 1, 11, 11)


def test_a_window_that_can_hold_no_sentence_is_refused_before_the_start() -> None:
    """With what helps: shorter sounds, which are longer than they may be; and then it is not refused."""
    trunk = Trunk(width=16, depth=1, heads=4, kv_heads=2, max_position_embeddings=60)
    run = run_of(trunk=trunk, generative=(Generative(task="audio>text"),))
    with pytest.raises(
        UserError, match=r"audio>text takes up to 753 tokens and Trunk\.max_position_embeddings=60 .*crop_seconds"
    ) as caught:
        check_window(run)
    assert "\n" not in str(caught.value)
    check_window(replace(run, data=replace(run.data, crop_seconds=2.0)))
    assert (
        limits_of(run).written == 59 and limits_of(replace(run, data=replace(run.data, crop_seconds=2.0))).written == 8
    )
    with pytest.raises(UserError, match=r"Trunk\.max_position_embeddings"):
        check(replace(run, data=replace(run.data, train=(Source(shards="none", modalities=("audio", "text")),))))


@pytest.mark.parametrize("long_text", ["truncate", "skip"])
def test_doctor_finds_them(shard, long_text: str) -> None:
    run = text_run(shard, long_text)
    sets, _ = look(sets_of(run), ShardCache(run.data.remote_cache), sums=False, fetch=False)
    tokenizer = BYTES.limited(run)
    swept = [scan(one, run, tokenizer) for one in sets]
    found = {item.code: item for item in lengths(sets, swept, run, tokenizer).findings}
    lacks = {item.code: item for item in presence(sets, swept, run).findings}
    if long_text == "truncate":
        assert found["text_truncated"].count == 2 and "k1: a text of 14 tokens" in found["text_truncated"].examples[0]
        assert "text_too_long" not in lacks
    else:
        assert lacks["text_too_long"].count == 2 and "text_truncated" not in found


def test_exports_read_as_much() -> None:
    """What transformers, open_clip and other runtimes are told of a text is the limit that the model keeps to."""
    from mmfm.export.tensors import contract
    from mmfm.export.tokenizer import hf_tokenizer, reading_tokenizer

    run = run_of(5, contrastive=PAIRS[:1])
    model = interface_of(run)
    theirs = hf_tokenizer(model.tokenizer, model.core.vocabulary)
    ids = theirs(["hello and more"], truncation=True).input_ids[0]
    start = model.core.vocabulary.span("text").start
    assert [index - start for index in ids[1:]] == model.tokenizer.read("hello and more") == [*b"hello"]
    assert contract(run.model, ["text"], model.tokenizer.longest)["text"]["context"] == 5
    words = TokenizerSpec(context=8, begin=(1,), end=(2,), pad=0, sha256="")
    own = replace(model.tokenizer, reader=Reader(BYTES.inner, words, ""))
    assert own.longest == 7 and replace(own, limits=Limits()).longest == 8 and BYTES.longest == 0
    found = reading_tokenizer(own.reader, own.longest)(["hello and more"], truncation=True).input_ids[0]
    assert found == own.read("hello and more")
