"""What the scores of a split do not cover, in lines for people."""

from collections import Counter
from collections.abc import Iterator, Sequence

from mmfm.evals.answers import Result
from mmfm.evals.collection import Opened
from mmfm.evals.split import Split


def left_out_of(splits: Sequence[Split], results: Sequence[Result]) -> list[str]:
    """One line for each thing that the scores do not cover."""
    lines = [f"{split.name}: {line}" if len(splits) > 1 else line for split in splits for line in lines_of_split(split)]
    return [*lines, *(line for result in results for line in result.left_out)]


def lines_of_split(split: Split) -> Iterator[str]:
    """What was not read of a split, and which of its texts are others than training would read."""
    total, own = len(split), split.infos[: len(split)]
    available = len(split.samples) - (len(split.infos) - total)
    if total < available:
        yield f"{total} of {available} samples were read, evenly spread (the limit)"
    if len(split.infos) > total:
        yield f"{len(split.infos) - total} more samples only widen the galleries of retrieval"
    if split.unread:
        yield f"{split.unread} of {total} samples have nothing that the model reads"
    if split.bad:
        codes = ", ".join(f"{code} ({count})" for code, count in sorted(Counter(split.bad.values()).items()))
        named = ", ".join(split.infos[row].key for row in list(split.bad)[:5])
        more = ", ..." if len(split.bad) > 5 else ""
        yield f"{len(split.bad)} of {total} samples cannot be used: {codes}; they are {named}{more}"
    if split.truncated:
        told = "their text is longer than is read: only its beginning counts, and their likelihood is left out"
        yield f"{split.truncated} of {total} samples: {told} (data.max_text_tokens)"
    if isinstance(opened := split.samples, Opened):
        if opened.mended:
            yield f"{opened.mended} texts hold half of a surrogate pair, which is read as U+FFFD"
        if opened.absent:
            yield f"{len(opened.absent)} files that are listed are not there, such as {opened.absent[0]}"
    if split.samples.ignored:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(split.samples.ignored.items()))
        yield f"files that are not read: {kinds}"
    if plain := sum(info.plain for info in own):
        told = "no text at a field that a source of the run names, so that their .txt or caption is their text"
        yield f"{plain} of {total} samples have {told}"
    if chosen := sum(len(info.texts) > 1 for info in own):
        told = "classes, WER, CER and likelihood are of the first, everything else of all of the likeliest field"
        yield f"{chosen} of {total} samples have several texts: {told}"
    for name, count in Counter(name for info in own for name in info.several).items():
        yield f"{count} of {total} samples hold several items of {name}: the last one is embedded, as in training"
    for task, items in split.written.items():
        if cut := sum(item.cut for item in items):
            told = f"{cut} of {len(items)} texts were cut after {split.max_tokens} tokens"
            yield f"{task}: {told}; --max-tokens allows more"
