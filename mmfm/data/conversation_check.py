"""Conversations before they are trained on: how much of them is learned, and one of them with its mask, for people."""

from collections import Counter
from collections.abc import Iterator

from mmfm.config import MESSAGES, Run
from mmfm.data.conversations import chat_of
from mmfm.data.index import modality_of
from mmfm.data.shards import Shards
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.chat import ChatIds, shown
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer

LOOKED_AT = 256  # conversations of a source
LONGEST = 1_200  # characters of the one that is shown


def look_at(label: str, shards: Shards, run: Run) -> Iterator[str]:
    """Lines on the first conversations of a source."""
    tokenizer = load_tokenizer(run.model.tokenizer).limited(run)
    count, bad, worst, chats, cut = min(LOOKED_AT, len(shards)), Counter[str](), "", list[ChatIds](), 0
    for place in range(count):
        counts = Counter(kind for name in shards.extensions(place) if (kind := modality_of(name)) is not None)
        try:
            chat, short = chat_of(shards.read(place, ("json",)), counts, run.model, tokenizer)
            chats.append(chat)
            cut += short
        except BadSample as why:
            bad[why.code] += 1
            worst = worst or str(why)
    tokens, learned = sum(len(chat.ids) for chat in chats), sum(sum(chat.learn) for chat in chats)
    if tokens:
        told = f"{label}: of the first {count:,} {MESSAGES} {tokens:,} tokens, {learned:,} learned"
        yield f"{told} ({100 * learned / tokens:.1f} %)" + (f"; {cut:,} are cut" if cut else "")
    if bad:
        codes = ", ".join(f"{code} {times}" for code, times in bad.most_common())
        yield f"{label}: {sum(bad.values()):,} of the first {count:,} cannot be used ({codes}): {worst}"
    if chats:
        yield f"  the first, what is learned in [[ ]]: {masked(chats[0], tokenizer)}"


def masked(chat: ChatIds, tokenizer: Tokenizer) -> str:
    """A conversation on one line, what is learned in brackets."""
    runs: list[tuple[str, bool]] = []
    for text, learned in shown(chat, tokenizer):
        if runs and runs[-1][1] == learned:
            runs[-1] = (runs[-1][0] + text, learned)
        else:
            runs.append((text, learned))
    line = "".join(f"[[{text}]]" if learned else text for text, learned in runs).replace("\n", "\\n")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
