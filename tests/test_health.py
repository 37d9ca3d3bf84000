"""Bad samples are counted alike on all ranks, and the budget stops them all at the same step."""

import json

import numpy as np
import pytest

from mmfm.config import UserError
from mmfm.data.bad_samples import WINDOW, Bad, BadSampleCounter
from mmfm.preprocessing import CODES


def bad(n: int, source: int = 0, code: str = "image_damaged") -> list[Bad]:
    return [Bad(source, f"shard-{i}.tar", f"k{i}", code, f"shard-{i}.tar: k{i}: no image", i) for i in range(n)]


def feed(health: BadSampleCounter, reads: list[int], found: list[Bad]) -> None:
    health.record(reads, found)
    health.add(health.drain())


def test_ranks_that_add_up_know_the_same():
    """Two ranks that met different samples, given the sum of both, have equal counts and equal state."""
    ranks = [BadSampleCounter(["a", "b"], 0.01) for _ in range(2)]
    ranks[0].record([8, 4], bad(2))
    ranks[1].record([6, 6], bad(1, 1, "audio_cut"))
    totals = [sum(pair) for pair in zip(*(rank.drain() for rank in ranks), strict=True)]
    for rank in ranks:
        rank.add(totals)
    assert ranks[0].counts() == {"a": {"read": 14, "image_damaged": 2}, "b": {"read": 10, "audio_cut": 1}}
    assert ranks[0].state() == ranks[1].state() and not any(ranks[0].drain())


def test_the_budget_is_of_the_last_ten_thousand():
    """A hundred bad ones of the last 10,000 pass and one more stops; what lies further back is forgiven."""
    health = BadSampleCounter(["a"], 0.01)
    feed(health, [WINDOW], bad(100))
    for _ in range(10):
        feed(health, [WINDOW // 10], [])
    feed(health, [WINDOW // 10], bad(100))
    with pytest.raises(
        UserError, match=r"101 of the last \d+ samples of 'a' cannot be used \(image_damaged 201\)"
    ) as e:
        feed(health, [1], bad(1))
    assert "shard-0.tar: k0" in str(e.value) and "skipped.jsonl" in str(e.value) and "\n" not in str(e.value)


BATCHES = (8, 64, 512, 4_096, 32_768, 65_536)


def read_until_stopped(step: int, share: float, reads: int) -> int:
    """How many samples are read until the run stops, of which this share is bad, at random; 0: it never does."""
    draw, health = np.random.default_rng(step), BadSampleCounter(["a"], 0.01)
    for at in range(-(-reads // step)):
        found = int(draw.binomial(step, share))
        try:
            health.add([step, found, *[0] * len(CODES)])  # the other codes, and what was truncated
        except UserError:
            return (at + 1) * step
    return 0


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("together", [1, 10])
def test_the_budget_is_a_fraction_whatever_the_batch(batch, together):
    """Three bad ones of ten thousand pass where one of a hundred may be bad, and so do 0.7 %, whether ranks meet each
    step or each tenth; one of twenty stops within 4,000 samples, or within the step that shows it."""
    step, many = batch * together, 20 * max(batch * together, 5_000)
    assert not read_until_stopped(step, 0.0003, many)
    assert not read_until_stopped(step, 0.007, many)
    assert 0 < read_until_stopped(step, 0.05, many) <= max(step, 4_000)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_source_that_turns_bad_stops_soon(batch):
    """However much of it was good before: one of twenty is noticed within four steps, or ten thousand samples."""
    health, reads = BadSampleCounter(["a"], 0.01), 0
    for _ in range(max(8, 20_000 // batch)):
        feed(health, [batch], [])
    while reads < max(10_000, 4 * batch):
        reads, found = reads + batch, (reads + batch) // 20 - reads // 20
        try:
            health.add([batch, found, *[0] * len(CODES)])  # the other codes, and what was truncated
        except UserError as why:
            assert "over data.max_bad_fraction=0.01 of" in str(why)
            return
    raise AssertionError("should have stopped")


def test_sources_have_budgets_of_their_own():
    """Sixty bad ones of each of two sources pass where 120 of one do not."""
    feed(BadSampleCounter(["a", "b"], 0.01), [5_000, 5_000], bad(60) + bad(60, 1))
    with pytest.raises(UserError, match="120 of the last 5000 samples of 'b'"):
        feed(BadSampleCounter(["a", "b"], 0.01), [5_000, 5_000], bad(120, 1))


def test_no_budget_means_none():
    with pytest.raises(UserError, match=r"1 of the last 8 samples of 'a' .*max_bad_fraction=0 "):
        feed(BadSampleCounter(["a"], 0.0), [8], bad(1))


def test_state_survives_json_and_forgets_what_came_after():
    """Loaded, it counts on as if nothing had happened since; the lines of what was met in between are not repeated."""
    health = BadSampleCounter(["a"], 0.01)
    feed(health, [100], bad(90))
    state = json.loads(json.dumps(health.state()))
    health.record([50], bad(5))
    health.load(state)
    assert (
        not any(health.drain())
        and health.skipped() == []
        and health.counts() == {"a": {"read": 100, "image_damaged": 90}}
    )
    with pytest.raises(UserError, match="101 of the last 120"):
        feed(health, [20], bad(11))
    with pytest.raises(UserError, match="other sources or codes"):
        BadSampleCounter(["a", "b"], 0.01).load(state)


def test_lines_name_source_shard_and_key():
    """Each bad sample is one line of JSON, handed out once."""
    health = BadSampleCounter(["pictures"], 0.01)
    health.record([3], bad(1))
    (line,) = health.skipped()
    assert json.loads(line) == {
        "source": "pictures", "shard": "shard-0.tar", "key": "k0", "code": "image_damaged",
        "message": "shard-0.tar: k0: no image", "position": 0,
    } and health.skipped() == []  # fmt: skip
