"""Writing over the cache against writing without one, the grammar, and sampling."""

import pytest
import torch
from toys import TEXT_IDS, pick, toy_batch, toy_model

from mmfm.batch import Batch, Tokens
from mmfm.generate import Decoding, write
from mmfm.grammar import parse
from mmfm.trunk import Segment


def slow_greedy(model, task, batch: Batch, row: int, max_tokens: int) -> list[int]:
    """One sample alone, the whole sentence read anew for every token."""
    one = pick(batch, [row])
    sources = [model.source(name, one.items[name]) for name in task.sources]
    ids = [model.vocabulary.begin("text")]
    span = model.vocabulary.span("text")
    allowed = [*span, model.vocabulary.end]
    for _ in range(max_tokens):
        target = model.target(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
        logits = model.logits(model.trunk([*sources, target])[-1][0, -1])
        ids.append(allowed[int(logits[allowed].argmax())])
        if ids[-1] == model.vocabulary.end:
            break
    return [token - span.start for token in ids[1:] if token != model.vocabulary.end]


@pytest.mark.parametrize("task", ["image>text", "audio>text", "image,audio>text", ">text"])
def test_cached_and_batched_is_recomputed_and_alone(task):
    """The cache, and the padding of other samples in the batch, change no token."""
    model, batch = toy_model(3), toy_batch()
    rows, ids, *_ = write(model, parse(task), batch, Decoding(max_tokens=7))
    assert rows == ([0, 1, 2, 3, 4, 5] if task == ">text" else sorted(rows)) and len(rows) >= 2
    for row, found in zip(rows, ids, strict=True):
        assert found == slow_greedy(model, parse(task), batch, row, 7)


def test_the_cache_holds_what_a_whole_pass_computes():
    """States of a target given in two pieces over the cache equal those of one pass, to 1e-12 in float64."""
    model, batch = toy_model(), toy_batch()
    rows = batch.items["audio"].rows
    source = model.source("audio", batch.items["audio"].take(torch.searchsorted(batch.items["audio"].rows, rows)))
    ids = torch.randint(5, 5 + TEXT_IDS, (len(rows), 6), generator=torch.Generator().manual_seed(0))
    keep = torch.ones_like(ids, dtype=torch.bool)
    whole = model.trunk([source, model.target(ids, keep)])[-1]
    cache = model.trunk.new_cache()
    model.trunk([source], cache)
    pieces = [model.trunk([model.target(ids[:, part], keep[:, part])], cache)[0] for part in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-12)


def test_the_grammar_keeps_to_the_range_of_text():
    """With reserved image and audio ranges whose rows are made the likeliest, only text and the end are written."""
    model = toy_model(image_codes=9, audio_codes=9)
    with torch.no_grad():
        model.embedding.weight[model.vocabulary.span("image").start :] *= 100
    _, ids, *_ = write(model, parse("image>text"), toy_batch(), Decoding(max_tokens=6))
    assert any(ids) and all(0 <= token < TEXT_IDS for row in ids for token in row)


def test_a_padded_place_is_never_seen():
    """A segment with a hole: what stands in the hole changes no state of the real places."""
    model = toy_model()
    x = torch.randn(1, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True, True, False, True, True]])
    other = torch.where(keep.unsqueeze(-1), x, 99.0)
    a, b = (model.trunk([Segment(Tokens(value, keep))])[0][keep] for value in (x, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
