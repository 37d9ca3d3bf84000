"""The one idea, pinned: the joint pass gives the source's own embedding, nothing leaks, and padding changes nothing."""

import pytest
import torch
from toys import TEXT_IDS, padded, pick, toy_batch, toy_model

from mmfm.config.task import parse
from mmfm.data.batch import Batch, Items
from mmfm.objectives.task_pass import forward_task

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("task", ["image>text", "audio>text", "image,audio>text"])
def test_the_joint_pass_gives_the_embedding_of_the_source_alone(task):
    """With the target behind it, or another source, the first source's embedding is what it is alone."""
    model, batch = toy_model(), toy_batch()
    joint = forward_task(model, parse(task), batch)
    alone = forward_task(model, parse(parse(task).sources[0]), batch)
    where = torch.isin(alone.rows, joint.rows)
    torch.testing.assert_close(joint.embedding, alone.embedding[where], **CLOSE)


@pytest.mark.parametrize("task", ["image>text", "audio>text"])
def test_no_target_token_reaches_the_embedding(task):
    """The gradient of the embedding with respect to the target's embedding table is exactly zero."""
    model, batch = toy_model(), toy_batch()
    reading = forward_task(model, parse(task), batch)
    (gradient,) = torch.autograd.grad(reading.embedding.sum(), model.embedding.weight, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_a_target_token_sees_no_later_one_and_every_source():
    """Changing the third token changes no state before it; changing the picture changes the very first."""
    model, batch = toy_model(), toy_batch()
    text = batch.items["text"]
    long = next(i for i, n in enumerate(text.keep.sum(1).tolist()) if n == 5 and int(text.rows[i]) % 3 != 1)
    changed = text.x.clone()
    changed[long, 2] = (changed[long, 2] + 1) % TEXT_IDS
    image = batch.items["image"]
    flipped = Items(x=255 - image.x, keep=image.keep, rows=image.rows)

    def states(**items: Items) -> torch.Tensor:
        other = Batch(size=batch.size, items={**batch.items, **items}, positive_ids=batch.positive_ids)
        reading = forward_task(model, parse("image>text"), other)
        return reading.states[reading.sample_ids == text.rows[long]]

    before, after = states(), states(text=Items(x=changed, keep=text.keep, rows=text.rows))
    torch.testing.assert_close(before[:3], after[:3], rtol=0, atol=0)
    assert (before[3] - after[3]).abs().max() > 1e-4
    assert (before[0] - states(image=flipped)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("task", ["image>text", "audio>text", "image,audio>text", ">text", "text", "audio"])
def test_padded_in_a_batch_is_as_alone(task):
    """Every sample of a padded batch has the embedding and the states that it has in a batch of its own."""
    model, batch = toy_model(), toy_batch()
    together = forward_task(model, parse(task), batch)
    for place, row in enumerate(together.rows.tolist()):
        alone = forward_task(model, parse(task), pick(batch, [row]))
        if len(together.embedding):
            torch.testing.assert_close(together.embedding[place : place + 1], alone.embedding, **CLOSE)
        torch.testing.assert_close(together.states[together.sample_ids == row], alone.states, **CLOSE)
        assert together.labels[together.sample_ids == row].tolist() == alone.labels.tolist()


def test_what_the_padding_holds_does_not_matter():
    """Noise or zeros behind a clip's end: the same embedding, to the last bit of float64 that sums allow."""
    model, batch = toy_model(), toy_batch()
    audio = batch.items["audio"]
    zeros = Items(x=audio.x * audio.keep, keep=audio.keep, rows=audio.rows)
    quiet = Batch(size=batch.size, items={**batch.items, "audio": zeros}, positive_ids=batch.positive_ids)
    a, b = (forward_task(model, parse("audio"), x).embedding for x in (batch, quiet))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_labels_are_the_text_and_its_end_mark():
    """What is predicted for a sample is its own ids in the shared vocabulary, then the end; no text, no label."""
    model, batch = toy_model(), toy_batch()
    reading = forward_task(model, parse("image>text"), batch)
    text = batch.items["text"]
    for row in reading.rows.tolist():
        labels = reading.labels[reading.sample_ids == row].tolist()
        if row not in text.rows.tolist():
            assert labels == []
            continue
        ids = text.x[text.rows == row][text.keep[text.rows == row]]
        assert labels == [*model.vocabulary.shared("text", ids).tolist(), model.vocabulary.end]


def test_permuting_the_batch_permutes_the_embeddings():
    model, batch = toy_model(), toy_batch()
    order = [5, 2, 0, 3]  # those with an image
    shuffled = pick(batch, sorted(order))
    a = forward_task(model, parse("image"), batch)
    b = forward_task(model, parse("image"), shuffled)
    assert a.rows.tolist() == sorted(order)
    torch.testing.assert_close(a.embedding, b.embedding, **CLOSE)


def test_a_batch_without_the_source_reads_nothing():
    """No image anywhere: no reading, rather than an empty tensor that breaks a convolution."""
    model, batch = toy_model(), pick(toy_batch(), [1, 4])
    assert "image" not in batch.items and forward_task(model, parse("image>text"), batch) is None
    assert forward_task(model, parse("audio>text"), batch) is not None


def test_longer_clips_give_more_tokens_and_text_is_not_fixed_in_length():
    """Tokens follow the input: a quarter of the frames, and one per text token, with none reserved."""
    model = toy_model()
    batch = toy_batch()
    audio = batch.items["audio"]
    short = padded(audio.x[:, :1_600], torch.full((len(audio.x),), 1_600), audio.rows)
    counts = [model.tokens("audio", items).keep.sum(1).max().item() for items in (audio, short)]
    assert counts == [4, 3]  # 15 and 10 frames of 10 ms
    text = batch.items["text"]
    assert model.tokens("text", text).x.shape[1] == int(text.keep.sum(1).max())
