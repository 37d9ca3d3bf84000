"""A sound or a text in two: where it is cut, what each half holds, and which samples are left whole."""

from dataclasses import replace

import pytest
import torch
from toys import TEXT_IDS, toy_batch, toy_config

from mmfm.config import AudioCodec, Mel, UserError
from mmfm.config.task import parse
from mmfm.data.batch import Ids, Items
from mmfm.models.model import UnifiedModel, build
from mmfm.objectives.continuation import halves, with_halves

AUDIO = AudioCodec(mel=Mel(bins=16), frame_stack=4, num_codebooks=2, levels=(3, 4), width=24, depth=1)


def model_of(**changes: object) -> UnifiedModel:
    torch.manual_seed(0)
    return build(toy_config(audio_codec=AUDIO, **changes), TEXT_IDS).double().eval()


def items_of(lengths: list[int], rows: list[int], draws: torch.Tensor | None = None) -> Items:
    keep = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    x = (torch.arange(max(lengths)) + 100 * torch.arange(1, 1 + len(lengths))[:, None]) * keep
    return Items(x=x, keep=keep, rows=torch.tensor(rows), draws=draws)


def test_the_halves_are_the_whole():
    """Half of it, in whole units, and the rest; what has not two units stays, and what is not asked."""
    items = items_of([10, 3, 8, 2], [0, 1, 2, 5])
    found = halves(items, torch.tensor([True, True, False, True]), unit=2)
    assert found.rows.tolist() == [0, 0, 1, 1, 2, 5]
    rows = [row[keep].tolist() for row, keep in zip(found.x, found.keep, strict=True)]
    assert rows[0] == [100, 101, 102, 103] and rows[1] == [104, 105, 106, 107, 108, 109]
    assert rows[2] == [200, 201] and rows[3] == [202]
    assert rows[4] == list(range(300, 308)) and rows[5] == [400, 401]


def test_codes_that_are_stored_are_cut_where_the_sound_is():
    """Two books: a unit of sound has two codes."""
    items = items_of([9], [0])
    written = Ids(torch.arange(6)[None], torch.ones(1, 6, dtype=torch.bool))
    found = halves(replace(items, written=written), torch.tensor([True]), unit=3, books=2)
    assert found.written is not None
    assert [row[keep].tolist() for row, keep in zip(*found.written, strict=True)] == [[0, 1, 2, 3], [4, 5]]
    assert found.keep.sum(1).tolist() == [6, 3]


def test_draws_decide_where():
    """Between a quarter and three quarters, otherwise for each; the same draws cut alike, alone and among others."""
    draws = torch.rand(40, 6, generator=torch.Generator().manual_seed(3))
    items = items_of([100] * 40, list(range(40)), draws)
    found = halves(items, torch.ones(40, dtype=torch.bool), unit=1)
    cuts = found.keep.sum(1)[::2]
    assert 25 <= cuts.min() < 35 and 65 < cuts.max() <= 75 and len(cuts.unique()) > 15
    alone = halves(items.take(torch.tensor([7])), torch.ones(1, dtype=torch.bool), unit=1)
    assert alone.keep.sum(1).tolist() == found.keep.sum(1)[14:16].tolist()
    assert found.draws is not None and torch.equal(found.draws[14], found.draws[15])


def test_a_sound_is_cut_between_two_steps_of_its_codec():
    """So that the codes of the halves are as many as those of the whole; each half is heard alone."""
    model, batch = model_of(), toy_batch()
    found = with_halves(model, parse("audio>audio"), batch).items["audio"]
    codec = model.codec("audio")
    whole = codec.encode(batch.items["audio"].x, batch.items["audio"].keep)
    each = codec.encode(found.x, found.keep).keep.sum(1)
    assert found.rows.tolist() == [row for row in batch.items["audio"].rows.tolist() for _ in range(2)]
    assert (each[::2] + each[1::2]).tolist() == whole.keep.sum(1).tolist()
    assert (found.keep.sum(1)[::2] % codec.step_samples == 0).all()


def test_a_question_and_its_answer_stay_as_they_are():
    """A sample with two texts is not cut, one with one text is; and nothing is where a task names one text only."""
    model, batch = model_of(), toy_batch()
    batch = replace(batch, items={"text": items_of([4, 3, 5], [0, 0, 1])})
    found = with_halves(model, parse("text>text"), batch).items["text"]
    assert found.rows.tolist() == [0, 0, 1, 1]
    assert found.keep.sum(1).tolist() == [4, 3, 2, 3]
    assert with_halves(model, parse("image>text"), batch) is batch
    assert with_halves(model, parse("text~"), batch) is batch


def test_what_cannot_be_cut_says_why():
    model, batch = model_of(), toy_batch()
    with pytest.raises(UserError, match="image>image: an item of image cannot be cut; give samples with two of them"):
        with_halves(model, parse("image>image"), batch)
    text = batch.items["text"]
    reader = replace(batch, items={"text": replace(text, written=Ids(text.x, text.keep))})
    with pytest.raises(UserError, match="a tokenizer of its own reads other tokens than are written: give two texts"):
        with_halves(model, parse("text>text"), reader)
