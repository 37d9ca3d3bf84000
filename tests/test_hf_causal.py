"""Writing through transformers' generate: the cache is read, padding is not, the text is what `mmfm.load` writes."""

import numpy as np
import pytest
import torch
from exported import Exported, export
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import mmfm
from mmfm.compat.transformers import CACHE, CACHE_NAMES, cache_of
from mmfm.config import UserError
from mmfm.data.decode import Example, collate
from mmfm.export import hf

TEXTS = ["seven", "f", "forty-two and more"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Exported:
    hf.register()
    return export(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def writer(made):
    return AutoModelForCausalLM.from_pretrained(made.folder)


@pytest.fixture(scope="module")
def tokenizer(made):
    return AutoTokenizer.from_pretrained(made.folder)


@pytest.fixture(scope="module")
def given(made) -> dict[str, torch.Tensor]:
    """Three pictures and three sounds of different lengths, padded with what is not silence."""
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (20, 40, 3), dtype=np.uint8)) for _ in range(3)]
    waves = torch.from_numpy(0.1 * draw.standard_normal((3, 6_000)).astype(np.float32))
    keep = torch.arange(6_000) < torch.tensor([6_000, 2_500, 4_001])[:, None]
    pixels = torch.stack([made.model.transform(picture) for picture in pictures])
    return {"pixel_values": pixels, "input_features": waves, "input_features_mask": keep.long()}


@torch.no_grad()
def test_nats_are_ours(made, writer, tokenizer, given):
    """The loss over texts of several lengths is `nats` of the interface, for every task, with the end mark scored."""
    model, end = made.model, made.model.core.vocabulary.end
    ids = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    ends = ids["attention_mask"].sum(1)
    full = torch.nn.functional.pad(ids["input_ids"], (0, 1)).scatter(1, ends[:, None], end)
    keep = torch.arange(full.shape[1]) <= ends[:, None]
    labels = full.masked_fill(~keep, -100)
    examples = [
        Example(key=str(i), text=text, image=given["pixel_values"][i], audio=given["input_features"][i][mask.bool()])
        for i, (text, mask) in enumerate(zip(TEXTS, given["input_features_mask"], strict=True))
    ]
    batch = collate(examples, model.tokenizer)
    for task in model.tasks:
        names = [name for name in given if {"pixel_values": "image"}.get(name, "audio") in task.split(">")[0]]
        sources = {name: given[name] for name in names}
        out = writer(input_ids=full, attention_mask=keep, labels=labels, **sources)
        nats = model.nats(task, batch)
        torch.testing.assert_close(out.loss * ends.sum(), nats.sum(), rtol=1e-5, atol=0, msg=task)
        assert out.logits.shape[:2] == full.shape


@torch.no_grad()
@pytest.mark.parametrize("sources", [(), ("pixel_values",), ("pixel_values", "input_features", "input_features_mask")])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}])
def test_the_cache_changes_nothing(writer, tokenizer, given, sources, how):
    """Greedy, beams and draws, over a left-padded batch and before any source: as if all were computed anew."""
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt") | {name: given[name] for name in sources}
    both = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        both.append(writer.generate(**inputs, use_cache=use_cache, max_new_tokens=7, **how))
    assert torch.equal(*both)
    assert torch.equal(both[0][:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@torch.no_grad()
def test_step_by_step_is_all_at_once(writer, tokenizer):
    """Logits of one pass, of single steps over a cache, of steps of uneven length, and of inputs_embeds."""
    ids = tokenizer(TEXTS[2], return_tensors="pt")["input_ids"]
    whole = writer(input_ids=ids).logits
    cache, parts = DynamicCache(), []
    for piece in ids.split([1, 4, 1, ids.shape[1] - 6], dim=1):
        parts.append(writer(input_ids=piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=2e-5)
    embedded = writer(inputs_embeds=writer.get_input_embeddings()(ids), logits_to_keep=2)
    torch.testing.assert_close(embedded.logits, whole[:, -2:], rtol=0, atol=2e-5)
    torch.testing.assert_close(writer(input_ids=ids, logits_to_keep=torch.tensor([1])).logits, whole[:, 1:2])
    fresh = cache_of(writer(input_ids=ids[:, :3], use_cache=True))
    later = writer(input_ids=ids[:, 3:], past_key_values=fresh).logits
    torch.testing.assert_close(later, whole[:, 3:], rtol=0, atol=2e-5)


@torch.no_grad()
def test_positions_are_what_one_says(writer, tokenizer):
    """position_ids are honoured: only distances count, a shift of all changes nothing, a gap does."""
    ids = tokenizer(TEXTS[2], return_tensors="pt")["input_ids"]
    places = torch.arange(ids.shape[1])[None]
    plain, shifted = writer(input_ids=ids).logits, writer(input_ids=ids, position_ids=places + 11).logits
    torch.testing.assert_close(plain, shifted, rtol=0, atol=1e-4)
    assert (writer(input_ids=ids, position_ids=places + 3 * (places > 4)).logits - plain).abs().max() > 1e-2


@torch.no_grad()
def test_a_padded_row_is_as_alone(writer, tokenizer, given):
    """Left padding, right padding and holes, with a source of padded length before them."""
    together = tokenizer(TEXTS, padding=True, return_tensors="pt")
    written = writer.generate(**together, **given, max_new_tokens=6)[:, together["input_ids"].shape[1] :]
    for row, text in enumerate(TEXTS):
        mine = {name: value[row : row + 1] for name, value in given.items()}
        length = int(mine["input_features_mask"].sum())
        mine = mine | {name: mine[name][:, :length] for name in ("input_features", "input_features_mask")}
        ids = tokenizer(text, return_tensors="pt")
        alone = writer(**ids, **mine).logits
        left = writer(**together, **given).logits[row : row + 1, -alone.shape[1] :]
        torch.testing.assert_close(left, alone, rtol=0, atol=2e-5)
        holes = torch.zeros(1, 2 * alone.shape[1], dtype=torch.long)
        holes[:, ::2], mask = ids["input_ids"], torch.arange(2 * alone.shape[1])[None] % 2 == 0
        spread = writer(input_ids=holes, attention_mask=mask, **mine).logits[:, ::2]
        torch.testing.assert_close(spread, alone, rtol=0, atol=2e-5)
        new = writer.generate(**ids, **mine, max_new_tokens=6)[0, alone.shape[1] :]
        assert (written[row, : len(new)] == new).all()


@torch.no_grad()
def test_what_is_generated_is_what_the_interface_writes(made, writer, tokenizer, given, tmp_path):
    """From the begin mark, for every task; nothing but text is written, and the end mark ends it."""
    examples = [
        Example(key=str(i), image=given["pixel_values"][i], audio=given["input_features"][i][mask.bool()])
        for i, mask in enumerate(given["input_features_mask"])
    ]
    for task in made.model.tasks:
        names = [name for name in given if {"pixel_values": "image"}.get(name, "audio") in task.split(">")[0]]
        ids = {} if names else {"input_ids": torch.full((3, 1), writer.config.bos_token_id)}
        out = writer.generate(**ids, **{name: given[name] for name in names}, max_new_tokens=9)
        _, ours = made.model.write(task, collate(examples, made.model.tokenizer), 9)
        assert tokenizer.batch_decode(out, skip_special_tokens=True) == ours
    assert len(set(ours)) > 1


@torch.no_grad()
def test_beams_are_reordered_with_their_own_past(writer, given):
    """The best of several beams, found by hand: every continuation scored whole, without a cache."""
    start = torch.full((1, 1), writer.config.bos_token_id)
    source = {"pixel_values": given["pixel_values"][:1]}
    how = {"num_beams": 5, "num_return_sequences": 5, "max_new_tokens": 3, "min_new_tokens": 3}
    out = writer.generate(start, **source, **how, return_dict_in_generate=True, output_scores=True)
    for row, score in zip(out.sequences, out.sequences_scores, strict=True):
        logits = writer(input_ids=row[None], **source).logits[0, :-1]
        alone = logits.log_softmax(-1).gather(1, row[1:, None]).sum() / 3
        assert score.item() == pytest.approx(alone.item(), abs=1e-4)
    assert len({tuple(row.tolist()) for row in out.sequences}) == 5


@torch.no_grad()
def test_a_fixed_cache_writes_the_same(writer, tokenizer, given):
    """A static cache has more columns than there are tokens; what it holds beyond them is not looked at."""
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt") | {"pixel_values": given["pixel_values"]}
    plain = writer.generate(**inputs, max_new_tokens=5)
    assert torch.equal(writer.generate(**inputs, max_new_tokens=5, cache_implementation="static"), plain)


@torch.no_grad()
def test_a_cache_is_read_under_each_of_its_names(writer):
    """transformers renamed it once; what is given under either name is read, and under a third it is not dropped."""
    ids = torch.tensor([[writer.config.bos_token_id, 40, 50, 60]])
    whole = writer(input_ids=ids).logits[:, 2:]
    for name in CACHE_NAMES:
        first = writer(input_ids=ids[:, :2], use_cache=True)
        assert isinstance(first[CACHE], DynamicCache) and cache_of(first) is first[CACHE]
        later = writer(input_ids=ids[:, 2:], **{name: cache_of(first)})
        torch.testing.assert_close(later.logits, whole, rtol=0, atol=2e-5)
    cache = cache_of(writer(input_ids=ids, use_cache=True))
    for given, words in (
        ({"kept_keys": cache}, "kept_keys=DynamicCache is a cache under a name that it does not know"),
        ({"past_states": [1]}, "past_states=list is a cache"),
        ({"cache": cache, "past_key_values": cache}, "are one thing"),
        (
            {"token_weights": ids},
            r"token_weights=Tensor is unknown to this model, which takes input_ids, .*; leave it out",
        ),
        (
            {"output_attentions": True},
            "output_attentions=True is not possible with this model, which does as with output_attentions=False",
        ),
        ({"return_dict": False}, "return_dict=False is not possible"),
    ):
        with pytest.raises(UserError, match=words):
            writer(input_ids=ids, **given)


def test_a_folder_whose_cache_is_not_read_gets_no_name(made, tmp_path, monkeypatch):
    """A cache that forgets what it held: the export ends with the difference, and leaves nothing."""
    update = DynamicCache.update

    def forget(self, keys, values, layer):
        kept, seen = update(self, keys, values, layer)
        return kept, torch.cat([seen[:, :, : -values.shape[2]] * 0, values], 2)

    monkeypatch.setattr(DynamicCache, "update", forget)
    with pytest.raises(UserError, match=r"cache changes what is written"):
        mmfm.save_bundle(made.model, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [{}, {"do_sample": True}, {"num_beams": 2}])
@torch.no_grad()
def test_a_precision_that_is_too_narrow_is_told(made, tokenizer, how):
    """Weights whose sums are above float16's largest number: a line in place of a text that follows from nothing. The
    same weights write in bfloat16, and the folder's own in float16."""
    ids = tokenizer(TEXTS, padding=True, return_tensors="pt")
    for dtype, factor in ((torch.float16, 1), (torch.bfloat16, 100), (torch.float16, 100)):
        model = AutoModelForCausalLM.from_pretrained(made.folder, dtype=dtype)
        for parameter in model.core.trunk.parameters():
            parameter *= factor
        if (dtype, factor) != (torch.float16, 100):
            model.generate(**ids, max_new_tokens=4, **how)
            continue
        with pytest.raises(UserError, match=r"the scores of the next text token .* in half precision: give dtype flo"):
            model.generate(**ids, max_new_tokens=4, **how)


@torch.no_grad()
def test_parts_of_a_batch_add_up_to_its_loss(writer):
    """The Trainer gives each part the labels of all: the losses of the parts are a sum, whatever their lengths."""
    ids = torch.tensor([[3, 40, 50, 60], [3, 70, 2, 2]]).index_fill(1, torch.tensor([0]), writer.config.bos_token_id)
    labels = torch.tensor([[-100, 40, 50, 60], [-100, 70, -100, -100]])
    whole = writer(input_ids=ids, labels=labels).loss
    parts = [writer(input_ids=ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=4).loss for i in (0, 1)]
    torch.testing.assert_close(sum(parts), whole)


def test_what_cannot_be_read_is_said(made, writer, given):
    start, pixels = torch.full((3, 1), writer.config.bos_token_id), given["pixel_values"]
    cache = cache_of(writer(input_ids=start, use_cache=True))
    for kind, words, call in (
        (UserError, "sources come before all text", lambda: writer(start, past_key_values=cache, pixel_values=pixels)),
        (UserError, r"attention_mask has shape \(3, 5\); give \[3, 1\]", lambda: writer(start, torch.ones(3, 5))),
        (UserError, "2 texts for 3 sources", lambda: writer.generate(start[:2], pixel_values=pixels)),
        (UserError, "either input_ids or inputs_embeds", lambda: writer()),
        (NotImplementedError, "the vocabulary is fixed", lambda: writer.resize_token_embeddings(999)),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_gradients_reach_the_towers_through_the_loss(made, given):
    """Fine-tuning by transformers' protocol: labels in, loss out, everything that was read moves."""
    writer = AutoModelForCausalLM.from_pretrained(made.folder)
    ids = torch.tensor([[3, 40, 50, 2]]).expand(3, -1)
    writer(input_ids=ids, labels=ids, pixel_values=given["pixel_values"]).loss.backward()
    moved = {name.split(".")[1] for name, value in writer.named_parameters() if value.grad is not None}
    assert {"towers", "trunk", "connectors", "pools", "embedding"} <= moved
