"""The keys and values of places already read: a ring of them for each layer, and for a whole transformer."""

from jaxtyping import Bool, Int
from torch import Tensor


class LayerCache:
    """The keys and values of one layer so far, in buffers with room to spare: a step copies only what is new.

    room: how many tokens are expected; where there are more, the buffers double.
    """

    def __init__(self, room: int = 0) -> None:
        self.room, self.length = room, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, these last: views of the buffers, which the next call writes behind."""
        start, stop = self.length, self.length + keys.shape[2]
        if self.keys is None or self.values is None or stop > self.keys.shape[2]:
            room = max(self.room, stop if self.keys is None else 2 * stop)
            self.keys, self.values = self._moved(self.keys, keys, room), self._moved(self.values, values, room)
        self.keys[:, :, start:stop] = keys
        self.values[:, :, start:stop] = values
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def reorder(self, rows: Int[Tensor, " n"]) -> None:
        """Only these rows go on, in this order; one that is named twice goes on twice."""
        if self.keys is not None and self.values is not None:
            room = self.keys.shape[2]
            keys, values = (part[rows, :, : self.length] for part in (self.keys, self.values))
            self.keys, self.values = self._moved(keys, keys, room), self._moved(values, values, room)

    def _moved(self, old: Tensor | None, like: Tensor, room: int) -> Tensor:
        new = like.new_empty(like.shape[0], like.shape[1], room, like.shape[3])
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new


class KVCache:
    """What the trunk has read so far: keys and values of every layer, and which of them those to come may see.

    room: how many tokens are expected. A cache is for writing: no gradient passes what it is extended by later.
    """

    def __init__(self, depth: int, room: int = 0) -> None:
        self.layers = [LayerCache(room) for _ in range(depth)]
        self.room, self.length = room, 0
        self.most = 0  # real tokens that a row holds, at the most
        self.all_seen = True  # then no mask is needed
        self.seen: Bool[Tensor, "batch room"] | None = None
        self.count: Int[Tensor, " batch"] | None = None  # real tokens of each row, and so the next position
        self.turns: tuple[Tensor, Tensor] | None = None  # of `rotary`, for all positions that there is room for

    def extend(self, seen: Bool[Tensor, "batch time"], count: Int[Tensor, " batch"], all_seen: bool) -> None:
        """Of tokens that the layers have taken: those that later ones see, and how many there are by now."""
        start, self.length, self.count = self.length, self.length + seen.shape[1], count
        self.all_seen = self.all_seen and all_seen
        if self.seen is None or self.length > self.seen.shape[1]:
            room = max(self.room, self.length if self.seen is None else 2 * self.length)
            new = seen.new_ones(len(seen), room)
            if self.seen is not None:
                new[:, :start] = self.seen[:, :start]
            self.seen = new
        self.seen[:, start : self.length] = seen

    @property
    def past(self) -> Bool[Tensor, "batch time"] | None:
        """What the next token sees, itself not counted."""
        return None if self.seen is None else self.seen[:, : self.length]

    def reorder(self, rows: Int[Tensor, " n"]) -> None:
        """Only these rows go on, in this order; one that is named twice goes on twice."""
        for layer in self.layers:
            layer.reorder(rows)
        if self.seen is not None and self.count is not None:
            self.seen, self.count = self.seen[rows], self.count[rows]

    def snapshot(self) -> tuple[int, Tensor | None, bool, int]:
        """Where it stands now, for `back`."""
        return self.length, self.count, self.all_seen, self.most

    def rollback(self, mark: tuple[int, Tensor | None, bool, int]) -> None:
        """Forget what was read since."""
        self.length, self.count, self.all_seen, self.most = mark
        for layer in self.layers:
            layer.length = self.length
