"""Writing over the cache against writing without one and alone: greedy, drawn, by beams, guided, in any form."""

import pytest
import torch
from toys import TEXT_IDS, pick, toy_batch, toy_model

from mmfm.config import Trunk, UserError
from mmfm.config.task import parse
from mmfm.data.batch import Batch, Tokens
from mmfm.data.vocabulary import CodeFormat
from mmfm.generation import GenerationConfig, stream, write
from mmfm.generation.decode_step import stepper
from mmfm.generation.decoding_state import read_sources
from mmfm.generation.generate import steps
from mmfm.models.model import UnifiedModel
from mmfm.models.transformer import Segment
from mmfm.objectives.task_pass import sources_of

BOOKS = CodeFormat((4, 3), length=6)  # of pictures: two books, three steps
OPEN = CodeFormat((5, 2))  # of sounds, as long as they like


def any_model(seed: int = 3, **changes: object) -> UnifiedModel:
    """Writes texts, pictures and sounds."""
    model = toy_model(seed, image_codes=7, audio_codes=7, **changes)
    model.forms.update(image=BOOKS, audio=OPEN)
    return model


def whole_logits(model, task, batch: Batch, ids: list[int], hide: tuple[bool, ...] = ()) -> torch.Tensor:
    """After these ids of the vocabulary, the whole sentence read anew; `hide`: which sources are not seen."""
    _, sources = sources_of(model, task, batch) if task.sources else ([], [])
    seen = [part._replace(hidden=torch.tensor([no])) for part, no in zip(sources, hide or [False] * 9, strict=False)]
    target = model.target(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
    return model.logits(model.trunk([*seen, target])[-1][0, -1])


def slow(model, task, batch: Batch, row: int, max_tokens: int, passes=(((), 1.0),)) -> list[int]:
    """Local ids of one sample alone, greedily, without a cache, from a weighted sum of logits."""
    one, form, ids = pick(batch, [row]), model.forms[task.target], []
    span, vocabulary = model.vocabulary.span(task.target), model.vocabulary
    for step in range(form.length or max_tokens):
        shared = [vocabulary.begin(task.target), *(span.start + local for local in ids)]
        logits = sum(weight * whole_logits(model, task, one, shared, hide) for hide, weight in passes)
        allowed = [span.start + local for local in form.candidates(step)] + [vocabulary.end] * form.may_end(step)
        best = allowed[int(logits[allowed].argmax())]
        if best == vocabulary.end:
            break
        ids.append(best - span.start)
    return ids


TASKS = ["image>text", "audio>text", "image,audio>text", ">text", "text>image", "text,image>audio", "image>audio"]


@pytest.mark.parametrize("task", TASKS)
def test_cached_and_batched_is_recomputed_and_alone(task):
    """The cache, and the padding of other samples in the batch, change no id of any form."""
    model, batch = any_model(), toy_batch()
    rows, ids, *_ = write(model, parse(task), batch, GenerationConfig(max_tokens=8))
    assert rows == ([0, 1, 2, 3, 4, 5] if task == ">text" else sorted(rows)) and len(rows) >= 2
    for row, found in zip(rows, ids, strict=True):
        assert found == slow(model, parse(task), batch, row, 8)


@pytest.mark.parametrize("task", ["image,audio>text", "text>audio"])
def test_every_step_s_scores_are_those_of_a_whole_pass(task):
    """To 1e-9 in float64, behind padded sources, while rows leave at different steps: what is left is not disturbed."""
    model, task, batch = any_model(), parse(task), toy_batch(9)
    rows, sources = sources_of(model, task, batch)
    pen = read_sources(model, sources, task.sources, task.target, GenerationConfig(), len(rows))
    live, token = list(range(len(rows))), pen.begin
    shared, leave = [[int(pen.begin[0])] for _ in live], {1: [1], 3: [0]}
    for step in range(6):
        scorer, found = pen.at(step), pen.scores(token, step)
        for at, row in enumerate(live):
            expected = whole_logits(model, task, pick(batch, [int(rows[row])]), shared[row])[scorer.ids]
            torch.testing.assert_close(found[at], expected, rtol=0, atol=1e-9)
        token = scorer.ids[(torch.arange(len(live)) + step) % scorer.size]
        for at, row in enumerate(live):
            shared[row].append(int(token[at]))
        if step in leave:
            stay = torch.tensor([at for at in range(len(live)) if at not in leave[step]])
            live, token = [live[at] for at in stay], token[stay]
            pen.select(stay)
    assert len(live) >= 1 and len(live) < len(rows)


HOWS = {
    "drawn": GenerationConfig(max_tokens=8, temperature=1.3),
    "drawn of few": GenerationConfig(max_tokens=8, temperature=1.0, top_k=9, top_p=0.9, min_p=0.02, seed=4),
    "beams": GenerationConfig(max_tokens=8, num_beams=3),
    "guided": GenerationConfig(max_tokens=8, guidance=2.5),
    "guided beams": GenerationConfig(max_tokens=8, guidance=0.5, num_beams=2),
    "guided and drawn": GenerationConfig(max_tokens=8, guidance=3.0, temperature=1.0),
}


@pytest.mark.parametrize("task", ["image>text", "text>audio", "text,audio>image"])
@pytest.mark.parametrize("how", HOWS)
def test_a_row_in_a_batch_is_the_row_alone(how, task):
    """Its ids and its score, whatever the batch holds and whenever others end; each row with a seed of its own."""
    model, batch, seeds = any_model(), toy_batch(9), torch.arange(9) * 1_000 + 7
    together = write(model, parse(task), batch, HOWS[how], seeds=seeds)
    assert len({len(ids) for ids in together.ids}) > 1 or parse(task).target == "image" or "drawn" not in how[:5]
    for at, row in enumerate(together.rows[:4]):
        alone = write(model, parse(task), pick(batch, [row]), HOWS[how], seeds=seeds[[row]])
        assert alone.ids == [together.ids[at]]
        assert alone.scores is None or alone.scores == pytest.approx([together.scores[at]], abs=1e-9)


def test_draws_repeat_by_seed_and_differ_by_row_only_through_it():
    model, batch = any_model(), toy_batch()
    one, again, other = (
        write(model, parse("image>text"), batch, GenerationConfig(max_tokens=9, temperature=1.0, seed=seed)).ids
        for seed in (0, 0, 1)
    )
    assert one == again != other
    same = write(model, parse(">text"), batch, GenerationConfig(max_tokens=9, temperature=1.0)).ids
    assert all(row == same[0] for row in same)
    apart = write(
        model, parse(">text"), batch, GenerationConfig(max_tokens=9, temperature=1.0), seeds=torch.arange(6)
    ).ids
    assert apart[0] == same[0] and len({tuple(row) for row in apart}) > 3


def test_the_grammar_keeps_to_the_range_of_text():
    """With image and audio ranges whose rows are made the likeliest, only text and the end are written."""
    model = any_model()
    with torch.no_grad():
        model.embedding.weight[model.vocabulary.span("image").start :] *= 100
    ids = write(model, parse("image>text"), toy_batch(), GenerationConfig(max_tokens=6)).ids
    assert any(ids) and all(0 <= token < TEXT_IDS for row in ids for token in row)


def test_a_thousand_draws_of_a_form_all_decode():
    """Two books in turn, six ids, never an end before; and of an open form whole turns, at least one."""
    model, batch = any_model(), toy_batch()
    pen = read_sources(model, [], (), "image", GenerationConfig(), 1_000)
    ids = torch.tensor([step.ids for step in steps(pen, torch.arange(1_000), GenerationConfig(temperature=5.0))]).T
    assert ids.shape == (1_000, 6) and len({tuple(row) for row in ids.tolist()}) > 500
    books = torch.arange(6) % 2
    assert torch.equal((ids >= 4).long(), books.expand_as(ids)) and ids.min() >= 0 and ids.max() < 7
    how, seeds = GenerationConfig(temperature=2.0, max_tokens=9), torch.arange(6)
    for ids in write(model, parse("image>audio"), batch, how, seeds=seeds).ids:
        assert len(ids) in (2, 4, 6, 8) and all((local >= 5) == (at % 2 == 1) for at, local in enumerate(ids))
    with pytest.raises(UserError, match="max_tokens=1 is less than the 2 ids of one step of audio"):
        write(model, parse("image>audio"), batch, GenerationConfig(max_tokens=1))


def test_guidance_is_its_formula():
    """u + s (c - u), and with a scale for each source u + sum of s_i (c_i - u): greedy ids of whole passes by hand."""
    model, batch, task = any_model(5), toy_batch(), parse("image,audio>text")
    none, only_image, only_audio = (True, True), (False, True), (True, False)
    cases = [
        (GenerationConfig(max_tokens=6, guidance=4.0), [(none, -3.0), ((), 4.0)]),
        (GenerationConfig(max_tokens=6, guidance=0.0), [(none, 1.0)]),
        (
            GenerationConfig(max_tokens=6, guide=(("audio", 3.0), ("image", 2.0))),
            [(none, -4.0), (only_audio, 3.0), (only_image, 2.0)],
        ),
    ]
    different = set()
    for how, passes in cases:
        rows, ids, *_ = write(model, task, batch, how)
        different.add(str(ids))
        for row, found in zip(rows, ids, strict=True):
            assert found == slow(model, task, batch, row, 6, passes)
    plain = write(model, task, batch, GenerationConfig(max_tokens=6)).ids
    assert (
        plain == write(model, task, batch, GenerationConfig(max_tokens=6, guidance=1.0)).ids
        and len(different | {str(plain)}) == 4
    )


def test_the_flat_step_is_the_trunk_s():
    """Of Llama's block and of Qwen's, with padding before and without: the states of the next tokens, to 1e-12."""
    draw = torch.Generator().manual_seed(0)
    qwen = {"qkv_bias": True, "out_bias": True, "qk_norm": True, "eps": 0.1, "activation": "gelu_tanh"}
    shape = {"width": 16, "depth": 2, "heads": 4}
    for trunk in (Trunk(**shape, kv_heads=2), Trunk(**shape, kv_heads=4, **qwen)):
        model = toy_model(1, trunk=trunk)
        for lengths in ([5, 5, 5], [5, 3, 0]):
            keep = torch.arange(5) < torch.tensor(lengths)[:, None]
            before = Segment(Tokens(torch.randn(3, 5, 16, generator=draw, dtype=torch.float64), keep))
            caches = [model.trunk.new_cache(), model.trunk.new_cache()]
            for cache in caches:
                model.trunk([before], cache)
            with torch.no_grad():
                flat = stepper(model.trunk)
                for _ in range(9):
                    x = torch.randn(3, 16, generator=draw, dtype=torch.float64)
                    one = Segment(Tokens(x[:, None], torch.ones(3, 1, dtype=torch.bool)), causal=True)
                    found, expected = flat(x, caches[0]), model.trunk([one], caches[1])[0][:, 0]
                    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_hook_and_a_foreign_part_are_not_passed_over():
    """What is more than a plain linear map is called: a hook on one changes the flat step as it changes the model."""
    model = any_model()
    before = write(model, parse("image>text"), toy_batch(), GenerationConfig(max_tokens=8)).ids
    handle = model.trunk.blocks[1].mlp.down.register_forward_hook(lambda module, inputs, out: -out)
    hooked = write(model, parse("image>text"), toy_batch(), GenerationConfig(max_tokens=8)).ids
    assert hooked != before and hooked[0] == slow(model, parse("image>text"), toy_batch(), 0, 8)
    handle.remove()
    assert write(model, parse("image>text"), toy_batch(), GenerationConfig(max_tokens=8)).ids == before


def test_bfloat16_autocast_writes():
    """In fp32 under autocast the same forms come out, and the scores are near those of fp32."""
    model, batch = any_model().float(), toy_batch()
    rows, sources = sources_of(model, parse("image>text"), batch)
    found = []
    for on in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            pen = read_sources(model, sources, ("image",), "text", GenerationConfig(), len(rows))
            with torch.no_grad():
                found.append([pen.scores(pen.begin + 5 * step, step) for step in range(5)])
            assert found[-1][0].dtype == torch.float32
    for low, high in zip(*found, strict=True):
        assert 0 < (low - high).abs().max() < 0.05 * high.abs().max()


def text_of(ids) -> str:
    return "".join("abcdefghijklmnopqrst"[index] for index in ids)


@pytest.mark.parametrize(
    "how", [GenerationConfig(max_tokens=12, temperature=1.0, seed=2), GenerationConfig(max_tokens=6, num_beams=2)]
)
def test_streamed_pieces_join_to_what_is_written(how):
    """Ids and texts of every row, in the order of their steps."""
    model, batch = any_model(), toy_batch()
    whole = write(model, parse("image>text"), batch, how, decode=text_of)
    ids = {row: [] for row in whole.rows}
    texts = dict.fromkeys(whole.rows, "")
    for piece in stream(model, parse("image>text"), batch, how, decode=text_of):
        ids[piece.row] += piece.ids
        texts[piece.row] += piece.text
    assert list(ids.values()) == whole.ids and list(texts.values()) == whole.texts
    assert whole.texts == [text_of(row) for row in whole.ids] and any(whole.texts)


def test_a_stop_string_ends_its_row_alone():
    """The text ends before it, the others are as without it, and the row's streamed text is the same."""
    model, batch, task = any_model(), toy_batch(), parse("image>text")
    how = GenerationConfig(max_tokens=12, temperature=1.0, seed=2)
    free = write(model, task, batch, how, decode=text_of).texts
    longest = max(free, key=len)
    stop = longest[2:4]
    cut = GenerationConfig(max_tokens=12, temperature=1.0, seed=2, stop=(stop, "never"))
    found = write(model, task, batch, cut, decode=text_of)
    assert found.texts == [text.split(stop)[0] for text in free] and len(longest.split(stop)[0]) <= 2
    assert len(found.ids[free.index(longest)]) <= 4
    streamed = dict.fromkeys(found.rows, "")
    for piece in stream(model, task, batch, cut, decode=text_of):
        streamed[piece.row] += piece.text
    assert list(streamed.values()) == found.texts
    with pytest.raises(UserError, match="needs a decoder of ids"):
        write(model, task, batch, cut)
    with pytest.raises(UserError, match=r"is for texts; text>image writes none"):
        write(model, parse("text>image"), batch, cut, decode=text_of)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_cut_says_so(beams):
    """With room for all, a row that ended says "stop"; with the room that the longest needs less one, it alone was cut.

    A row whose ids just fit was not seen to end. What is streamed says the same; a picture is always whole.
    """
    model, batch, task = any_model(), toy_batch(), parse("image>text")
    free = write(model, task, batch, GenerationConfig(max_tokens=200, num_beams=beams))
    lengths = [len(ids) for ids in free.ids]
    whole = GenerationConfig(max_tokens=max(lengths) + 1, num_beams=beams)
    if max(lengths) < 200:
        assert write(model, task, batch, whole).finish == ["stop"] * len(lengths) == list(free.finish)
    short = GenerationConfig(max_tokens=2, num_beams=beams)
    found = write(model, task, batch, short)
    assert [one == "length" for one in found.finish] == [len(ids) == 2 for ids in found.ids]
    assert "length" in found.finish
    cut = {piece.row for piece in stream(model, task, batch, short) if piece.finish == "length"}
    assert cut == {row for row, one in zip(found.rows, found.finish, strict=True) if one == "length"}
    assert set(write(model, parse("text>image"), batch, short).finish) == {"stop"}


def test_a_stop_string_is_an_end():
    model, batch, task = any_model(), toy_batch(), parse("image>text")
    how = GenerationConfig(max_tokens=12, temperature=1.0, seed=2)
    free = write(model, task, batch, how, decode=text_of)
    longest = max(free.texts, key=len)
    cut = GenerationConfig(max_tokens=12, temperature=1.0, seed=2, stop=(longest[2:4],))
    found = write(model, task, batch, cut, decode=text_of)
    assert found.finish[free.texts.index(longest)] == "stop"


def test_the_cache_holds_what_a_whole_pass_computes():
    """States of a target given in pieces over the cache equal those of one pass, also behind a source that is hidden
    in a row, and again after going back."""
    model, batch = toy_model(), toy_batch()
    rows, (source,) = sources_of(model, parse("audio>text"), batch)
    source = source._replace(hidden=torch.arange(len(rows)) == 1)
    ids = torch.randint(5, 5 + TEXT_IDS, (len(rows), 6), generator=torch.Generator().manual_seed(0))
    keep = torch.ones_like(ids, dtype=torch.bool)
    whole = model.trunk([source, model.target(ids, keep)])[-1]
    for room in (0, 3, 100):
        cache = model.trunk.new_cache(room)
        model.trunk([source], cache)
        mark = cache.snapshot()
        for _ in range(2):
            pieces = [
                model.trunk([model.target(ids[:, part], keep[:, part])], cache)[0]
                for part in (slice(0, 2), slice(2, 3), slice(3, 6))
            ]
            torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-12)
            cache.rollback(mark)


def test_a_padded_place_is_never_seen():
    """A segment with a hole: what stands in the hole changes no state of the real places."""
    model = toy_model()
    x = torch.randn(1, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True, True, False, True, True]])
    other = torch.where(keep.unsqueeze(-1), x, 99.0)
    a, b = (model.trunk([Segment(Tokens(value, keep))])[0][keep] for value in (x, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_one_seen_row_needs_no_mask():
    """Nothing padded and nothing hidden: no mask is made for a step; one padded place, and there is one."""
    model = toy_model()
    for length, none in ((4, True), (3, False)):
        cache = model.trunk.new_cache()
        keep = torch.arange(4)[None] < length
        model.trunk([Segment(Tokens(torch.randn(1, 4, 16, dtype=torch.float64), keep))], cache)
        assert (model.trunk.next(1, cache)[1] is None) == none


@pytest.mark.parametrize(
    "how", [GenerationConfig(), GenerationConfig(num_beams=2), GenerationConfig(temperature=1.0, top_p=0.9)]
)
@pytest.mark.parametrize("task", ["image>text", "text>image"])
def test_scores_that_are_no_numbers_write_nothing(task, how):
    """One weight, and one bias of a norm's output, that is nan: one line that names it; never ids out of nothing."""
    model = any_model()
    with torch.no_grad():
        model.trunk.blocks[1].mlp.down.weight[0, 0] = torch.nan
    words = r"token are no numbers.* the weights trunk\.blocks\.1\.mlp\.down\.weight are not: give another"
    for call in (write, lambda *given: list(stream(*given))):
        with pytest.raises(UserError, match=words) as caught:
            call(model, parse(task), toy_batch(), how)
        assert "\n" not in str(caught.value)


def test_a_precision_that_is_too_narrow_is_named():
    """Numbers that fp16 cannot hold: the same model writes in single precision."""
    model = any_model().float()
    with torch.no_grad():
        model.trunk.norm.weight.fill_(6e4)
    write(model, parse(">text"), toy_batch(), GenerationConfig(max_tokens=2))
    with pytest.raises(UserError, match="in half precision: give dtype float32"):
        write(model.half(), parse(">text"), toy_batch(), GenerationConfig(max_tokens=2))
    with torch.no_grad():
        model.float().trunk.norm.weight.fill_(3e38)
    with pytest.raises(UserError, match=r"or inf\): give another of the run's checkpoints"):
        write(model, parse(">text"), toy_batch(), GenerationConfig(max_tokens=2))
