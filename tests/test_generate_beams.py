"""Beam search is that of transformers: the same sequences and scores for the same weights."""

import pytest
import torch
from peers import LANGUAGE, double, of_hf
from torch import Tensor

from mmfm.config import Model, Trunk
from mmfm.data.vocabulary import MARKS
from mmfm.generation import GenerationConfig
from mmfm.generation.beam_search import search
from mmfm.generation.decoding_state import DecodingState
from mmfm.models.mappings import convert
from mmfm.models.model import build

WORDS, PROMPT = 30, 4


def both(seed: int):
    """A Llama whose first rows are our marks, as transformers has it and as ours; the end is not unlikely."""
    torch.manual_seed(seed)
    theirs, source = of_hf("LlamaForCausalLM", "text", **(LANGUAGE | {"vocab_size": WORDS + len(MARKS)}))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        theirs.lm_head.weight[MARKS.index("end")] *= 2
    converted = convert(source, theirs.state_dict())
    assert isinstance(converted.part, Trunk)
    ours = build(Model(trunk=converted.part, image=None, audio=None, text=None, embed_dim=8), WORDS).eval()
    ours.trunk.load_state_dict(converted.weights)
    with torch.no_grad():
        ours.embedding.weight.copy_(converted.embedding)
        ours.output.weight.copy_(converted.output)
    return theirs, ours


def pen_behind(model, ids: Tensor) -> DecodingState:
    cache = model.trunk.new_cache()
    with torch.no_grad():
        model.trunk([model.target(ids[:, :-1], torch.ones_like(ids[:, :-1], dtype=torch.bool))], cache)
    end = model.vocabulary.end
    return DecodingState(model=model, target="text", cache=cache, weights=(1.0,), begin=ids[:, -1], end=end)


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_sequences_and_scores_are_those_of_transformers(beams, penalty):
    """Rows that end early, late and not at all; two seeds of weights."""
    lengths = set()
    for seed in (0, 1):
        with double():
            theirs, ours = both(seed)
            ids = torch.randint(len(MARKS), WORDS, (5, PROMPT), generator=torch.Generator().manual_seed(seed))
            ids[:, -1] = ours.vocabulary.begin("text")
            end = ours.vocabulary.end
            out = theirs.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=beams, length_penalty=penalty,
                max_new_tokens=9, do_sample=False, eos_token_id=end, pad_token_id=0, renormalize_logits=True,
                suppress_tokens=[at for at in range(len(MARKS)) if at != end], return_dict_in_generate=True,
                output_scores=True,
            )  # fmt: skip
            how = GenerationConfig(max_tokens=9, num_beams=beams, length_penalty=penalty)
            found, scores, finish = search(pen_behind(ours, ids), len(ids), how)
        for row, (ours_ids, score) in enumerate(zip(found, scores, strict=True)):
            written = out.sequences[row, PROMPT:].tolist()
            expected = written[: written.index(end)] if end in written else written[:9]
            assert [local + len(MARKS) for local in ours_ids] == expected
            assert score == pytest.approx(out.sequences_scores[row].item(), abs=1e-4)
            assert finish[row] == ("stop" if end in written else "length")
            lengths.add(len(ours_ids))
    assert len(lengths) > 1


def test_a_wide_search_finds_the_likeliest_of_all():
    """With as many beams as there are sequences, and no penalty, it is a search of everything, done here by hand."""
    with double():
        _, ours = both(2)
        ours.forms["text"] = type(ours.forms["text"])((3,), length=3)
        ids = torch.tensor([[9, ours.vocabulary.begin("text")]])
        (found,), (score,), _ = search(pen_behind(ours, ids), 1, GenerationConfig(num_beams=27, length_penalty=0.0))
        every = [[a, b, c] for a in range(3) for b in range(3) for c in range(3)]
        whole = torch.cat([ids.expand(27, -1), torch.tensor(every) + len(MARKS)], 1)
        with torch.no_grad():
            (states,) = ours.trunk([ours.target(whole, torch.ones_like(whole, dtype=torch.bool))])
            steps = ours.logits(states)[:, 1:4, len(MARKS) : len(MARKS) + 3].log_softmax(-1)
        totals = steps.gather(2, torch.tensor(every)[..., None]).sum((1, 2))
    assert found == every[int(totals.argmax())] and score == pytest.approx(totals.max().item(), abs=1e-9)
