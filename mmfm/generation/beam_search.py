"""Beam search: of all continuations of a row's beams the likeliest go on, and those that end are kept apart.

The rule is that of transformers with its defaults. Of the 2 b best continuations of b beams, those among the first b
that end (by their end, or at the longest that may be) are finished; the b best that do not end go on. A finished one
scores log-likelihood / length^penalty, its end counted. A row is done when b are finished and none of them is below
the best beam that goes on, divided likewise by its length so far.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mmfm.generation.decoding_state import DecodingState
from mmfm.generation.generation_config import Finish, GenerationConfig


class Beam(NamedTuple):
    """A beginning: its log-likelihood, the place of the beam that it continues, and its local ids."""

    total: float
    origin: int
    ids: list[int]


@dataclass(kw_only=True)
class Row:
    """The beams of one row that go on, and the best that are finished as (score, local ids, why), best first."""

    beams: list[Beam]
    finished: list[tuple[float, list[int], Finish]] = field(default_factory=list)

    def advance(self, found: list[Beam], ended: list[bool], final: bool, room: int, norm: float) -> bool:
        """Take the best continuations in, best first; whether the row goes on."""
        both = zip(found[:room], ended, strict=False)
        for beam, ends in both:
            if ends or final:
                self.finished.append((beam.total / norm, beam.ids, "stop" if ends else "length"))
        self.finished = sorted(self.finished, key=lambda one: -one[0])[:room]
        going = [beam for beam, ends in zip(found, ended, strict=True) if not (ends or final)][:room]
        if not going or (len(self.finished) == room and self.finished[-1][0] >= going[0].total / norm):
            return False
        self.beams = going + [going[0]._replace(total=-torch.inf)] * (room - len(going))
        return True


@torch.no_grad()
def search(pen: DecodingState, rows: int, how: GenerationConfig) -> tuple[list[list[int]], list[float], list[Finish]]:
    """The best local ids of each row, without the end, their scores, and whether they came to their end.

    The pen has read one row for each.
    """
    device, room, limit = pen.model.device, how.num_beams, pen.limit(how)
    shift = pen.model.vocabulary.span(pen.target).start
    pen.select(torch.arange(rows, device=device).repeat_interleave(room))
    every = [Row(beams=[Beam(0.0 if at == 0 else -torch.inf, at, []) for at in range(room)]) for _ in range(rows)]
    live, token = every, pen.begin
    for step in range(limit):
        scorer, norm = pen.at(step), (step + 1) ** how.length_penalty
        totals = torch.tensor([[beam.total for beam in row.beams] for row in live], device=device, dtype=torch.float64)
        each = pen.scores(token, step).double().log_softmax(-1).unflatten(0, (len(live), room))
        going: list[tuple[int, Row]] = []
        for at, (row, places) in enumerate(zip(live, _best(totals[..., None] + each, 2 * room), strict=True)):
            found = [
                Beam(total, beam, row.beams[beam].ids + [scorer.first + column] * (column < scorer.size))
                for total, beam, column in places
            ]
            ended = [column == scorer.size or step + 1 == pen.form.length for _, _, column in places]
            if row.advance(found, ended, step + 1 == limit, room, norm):
                going.append((at, row))
        if not going:
            break
        index = [at * room + beam.origin for at, row in going for beam in row.beams]
        if index != list(range(len(live) * room)):
            pen.select(torch.tensor(index, device=device))
        live = [row for _, row in going]
        token = torch.tensor([beam.ids[-1] + shift for row in live for beam in row.beams], device=device)
    best = [row.finished[0] for row in every]
    return [ids for _, ids, _ in best], [score for score, _, _ in best], [why for _, _, why in best]


def _best(totals: Tensor, count: int) -> list[list[tuple[float, int, int]]]:
    """The best continuations of each row: log-likelihood, beam, column; best first, none that cannot be."""
    columns = totals.shape[-1]
    values, places = totals.flatten(1).topk(min(count, totals[0].numel()))
    pairs = zip(values.tolist(), places.tolist(), strict=True)
    return [
        [(value, place // columns, place % columns) for value, place in zip(*pair, strict=True) if value > -torch.inf]
        for pair in pairs
    ]
