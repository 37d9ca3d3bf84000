"""How much a model has read since it was last asked: items, tokens and pairs of tokens, by part.

What is known on the host is counted there; what only the device knows is summed there and fetched when it is asked for,
so that counting makes nobody wait.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfm.data.batch import Tokens

ITEMS, PLACES, TOKENS, PAIRS, WANTED = KINDS = ("items", "places", "tokens", "pairs", "wanted")


class ReadCounts:
    """Counts of each part: a tower by its modality, "trunk", and "target" for the tokens that are written.

    items: pictures, sounds, texts, sentences. places: padding included; of the trunk, those of attention's groups.
    tokens: real ones. pairs: of tokens that are in one item. wanted: tokens whose states are used.
    """

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = (*parts, "trunk", "target")
        self.host: Counter[tuple[str, str]] = Counter()
        self.device: dict[str, Tensor] = {}
        self.embeddings = 0  # products of two of them, in contrasts

    @property
    def counts_now(self) -> bool:
        """Forwards without gradient belong to evaluation, or are made twice."""
        return torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def add(self, part: str, **counts: int) -> None:
        if self.counts_now:
            self.host.update({(part, kind): count for kind, count in counts.items()})

    def add_tower(self, part: str, tokens: Tokens) -> None:
        """Its output, of which the device alone may know what is real."""
        if self.counts_now:
            self.add(part, items=tokens.keep.shape[0], places=tokens.keep.numel())
            lengths = tokens.keep.sum(1)
            found = torch.stack([lengths.sum(), lengths.square().sum()])
            self.device[part] = found + self.device[part] if part in self.device else found

    def add_contrast(self, rows: int, all_rows: int) -> None:
        if self.counts_now:
            self.embeddings += rows * all_rows

    def drain(self, device: torch.device) -> Tensor:
        """All counts as one row of whole numbers, for `named`; then it begins anew. Waits for the device."""
        rows = torch.tensor([[self.host[part, kind] for kind in KINDS] for part in self.parts], device=device)
        for part, found in self.device.items():
            at = self.parts.index(part)
            rows[at, KINDS.index(TOKENS)] += found[0]
            rows[at, KINDS.index(PAIRS)] += found[1]
        drained = torch.cat([rows.flatten(), torch.tensor([self.embeddings], device=device)])
        self.host, self.device, self.embeddings = Counter(), {}, 0
        return drained

    def named(self, drained: Tensor) -> tuple[dict[str, dict[str, int]], int]:
        """Counts by part and kind, and how many products of embeddings there were."""
        *numbers, embeddings = drained.tolist()
        each = [numbers[start : start + len(KINDS)] for start in range(0, len(numbers), len(KINDS))]
        rows: list[dict[str, int]] = [dict(zip(KINDS, row, strict=True)) for row in each]
        return dict(zip(self.parts, rows, strict=True)), embeddings
