"""How many tokens a sample is, before it is read: ranks are dealt by them, and batches of a token budget cut by them.

By the index of its tar alone, so that the counts of a position are the same on every rank and in every process. The
tokens of texts are there for one tokenizer (`mmfm data index --tokenizer`); without them a text is a quarter of its
bytes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmfm.config import MESSAGES, MODALITIES, Conformer, Run, Tower, UserError, Vit
from mmfm.config.projectors import given_tokens
from mmfm.data import index
from mmfm.data.index import modality_of, numbered
from mmfm.data.sample import Sample, meta_of, text_of
from mmfm.data.shards import Shards
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.chat import parse_messages
from mmfm.preprocessing.tokenizer import Tokenizer

BYTES_OF_TOKEN = 4
FOREIGN_IMAGE, FOREIGN_SECOND = 196, 50  # tokens of an imported encoder, which says nothing before it runs
STEMS = {"conv": 4, "stack": 2, "none": 1}  # frames that become one token


def add_tokens(shard: Path, tokenizer: Tokenizer) -> None:
    """Writes into the tar's index how many tokens the texts of each sample are; -1 where it has none."""
    path = index.found_path(shard)
    assert path is not None
    tree = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    shards = Shards([shard])
    counts = [_text_tokens(shards[sample], tokenizer) for sample in range(len(shards))]
    tree["tokens"] = {"tokenizer": tokenizer.fingerprint, "counts": counts}
    index.put(shard, json.dumps(tree, separators=(",", ":")))


def _text_tokens(sample: Sample, tokenizer: Tokenizer) -> int:
    texts = [data.decode("utf-8-sig", "replace") for name, data in sample.parts.items() if _is_text(name)]
    try:
        texts = texts or _said(sample)
        texts = texts or [told for told in [text_of(sample)] if told is not None]
    except BadSample:
        return -1
    return sum(len(tokenizer.encode(text.strip())) for text in texts) if texts else -1


def _said(sample: Sample) -> list[str]:
    """The texts of a conversation; what stands around its turns is not counted."""
    said = meta_of(sample).get(MESSAGES)
    return [text for message in parse_messages(said, sample.where) for text in message.texts] if said else []


def _is_text(extension: str) -> bool:
    return modality_of(extension) == "text"


@dataclass(frozen=True)
class TokenCounts:
    """(source, sample) -> tokens that the trunk is given of it, but for marks and pools; each of its items once, and a
    picture that is read in tiles as one. most: of a text; 0: any number."""

    run: Run
    sources: Sequence[Shards]
    tokenizer: str = ""
    most: int = 0

    def __call__(self, source: int, sample: int) -> int:
        wanted, found = self.run.data.train[source].modalities, self.sources[source].indexed(sample)
        wanted = MODALITIES if MESSAGES in wanted else wanted
        lies, place = found
        count = 0
        if "image" in wanted:
            images = sum(modality_of(name) == "image" for name in lies.extensions(place))
            count += images * self._of_image
        if "audio" in wanted:
            data = self.run.data
            heard = min(max(0.0, lies.seconds[place]), data.crop_seconds or data.max_seconds)
            count += round(self._of_sound(heard)) if heard else 0
        if "text" in wanted:
            read = self._of_text(lies, place)
            count += min(read, self.most) if self.most else read
        return max(count, 1)

    def _of_text(self, lies: index.Index, place: int) -> int:
        counted = bool(self.tokenizer) and lies.tokenizer == self.tokenizer
        if self.tokenizer and not counted and self.run.data.tokens_per_batch:
            raise _uncounted(lies.shard, lies.tokenizer, self.tokenizer)
        known = lies.tokens[place] if counted else -1
        if known >= 0:
            return known
        sizes = {name: size for name, (_, size) in lies.parts(place).items()}
        texts = [size for name, size in sizes.items() if _is_text(name)]
        others = [size for name, size in sizes.items() if numbered(name)[1] == "json"]
        return -(-sum(texts or others) // BYTES_OF_TOKEN)

    @property
    def _of_image(self) -> int:
        tower, prefix, count = self.run.model.image, 0, FOREIGN_IMAGE
        if isinstance(tower, Vit):
            prefix, count = tower.prefix, tower.prefix + tower.tokens
        elif isinstance(tower, Tower):
            count = 1 if tower.pool != "none" else -(-FOREIGN_IMAGE // tower.frame_stack)
        return int(given_tokens(self.run.model.projectors, "image", count, prefix))

    def _of_sound(self, seconds: float) -> int | float:
        tower, rate = self.run.model.audio, float(FOREIGN_SECOND)
        if isinstance(tower, Conformer):
            rate = 1000 / tower.mel.hop_ms / STEMS[tower.stem]
        elif isinstance(tower, Tower):
            rate = FOREIGN_SECOND / tower.frame_stack
        pooled = isinstance(tower, Tower) and tower.pool != "none"
        return given_tokens(self.run.model.projectors, "audio", 1 if pooled else seconds * rate)


def require_counted(sources: Sequence[tuple[str, Shards]], tokenizer: str) -> None:
    """UserError where a tar of a source with texts was not counted by this tokenizer: batches of a token budget are cut
    by its counts, and would be others once it were."""
    for label, shards in sources:
        for number in range(len(shards.places)):
            if (found := shards.tokenizer(number)) != tokenizer:
                raise _uncounted(f"{label}: {shards.name(number)}", found, tokenizer)


def _uncounted(what: str, found: str, tokenizer: str) -> UserError:
    told = f"the index of {what!r} holds {'no tokens' if not found else f'the tokens of tokenizer {found}'}"
    remedy = "mmfm data index FOLDER --tokenizer PATH, or leave Data.tokens_per_batch out"
    return UserError(f"{told}, and the run's tokenizer is {tokenizer}; count them with: {remedy}")


def spans(first: int, count: int, cut: Callable[[int], range]) -> Iterator[range]:
    """The positions of so many batches, the first of which begins at `first`."""
    for _ in range(count):
        span = cut(first)
        yield span
        first = span.stop
