"""What a checkpoint of a run with adapters leaves out: locked weights that are there already, in a bundle, a run or a
package. `base.json` beside it says of each part where they came from and gives their SHA-256.

What is locked and came from nowhere is saved whole, and so are a language model's rows of marks and codes, which are
new: they are kept under the table's name and `.new`.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmfm.config import MODALITIES, Checked, Run, Tower, UserError, require
from mmfm.config.serialization import parse, write
from mmfm.data.vocabulary import Vocabulary
from mmfm.models.adapters import is_adapter, part_of
from mmfm.runtime.sharding import local_box

TABLES = ("embedding.weight", "output.weight")  # of a language model, which come with its trunk
NEW = ".new"
Prints = dict[str, tuple[int, bytes]]


@dataclass(frozen=True, kw_only=True)
class Base(Checked):
    """Of one part of the model, such as "trunk" or "towers.image", where its locked weights are."""

    part: str
    source: str  # a folder or another library's name, as the configuration has it
    made_of: str  # what a bundle says that it was imported from; empty: nothing
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Bases(Checked):
    """All of a run."""

    parts: tuple[Base, ...]


def base_part(name: str) -> str:
    """The part with which a parameter comes; the tables are one of their own."""
    return "vocabulary" if name in TABLES else part_of(name)


def sources_of(run: Run) -> dict[str, str]:
    """Of each part that may hold adapters where it begins, if anywhere."""
    if run.start:
        return dict.fromkeys(("trunk", "vocabulary", *(f"towers.{name}" for name in run.model.towers)), run.start)
    found: dict[str, str] = dict.fromkeys(("trunk", "vocabulary"), run.model.trunk.weights)
    for name in MODALITIES:
        part = getattr(run.model, name)
        found[f"towers.{name}"] = part.source if isinstance(part, Tower) else getattr(part, "weights", "")
    return {part: source for part, source in found.items() if source}


def prints(model: nn.Module) -> Prints:
    """Of each parameter what tells whether it was overwritten: the sum of its bytes, and its first ones."""
    return {name: _print(p.detach()) for name, p in model.named_parameters() if not p.is_meta}


def _print(tensor: Tensor) -> tuple[int, bytes]:
    data = tensor.contiguous().view(-1).view(torch.uint8)
    return int(data.sum(dtype=torch.int64)), data[:64].cpu().numpy().tobytes()


class LeftOut:
    """What this run's checkpoints leave out. before: the fingerprints of the model before any weights were loaded.
    held: tables that learn, but for their rows of text; one that learns whole is saved whole."""

    def __init__(
        self,
        model: nn.Module,
        vocabulary: Vocabulary,
        run: Run,
        before: Prints,
        made_of: Mapping[str, str],
        held: Collection[str] = (),
    ) -> None:
        after, sources = prints(model), sources_of(run)
        locked = {name for name, p in model.named_parameters() if not p.requires_grad and not is_adapter(name)}
        self.names = {
            name for name in locked.union(held) if after[name] != before.get(name) and base_part(name) in sources
        }
        self.vocabulary = vocabulary
        digests = digests_of(model, vocabulary, self.names)
        self.bases = Bases(
            parts=tuple(
                Base(part=part, source=sources[part], made_of=made_of.get(part, ""), sha256=digest)
                for part, digest in digests.items()
            )
        )

    def file(self) -> bytes:
        return write(self.bases).encode()

    def learned(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights without what is left out; of a table the rows that are not of text, unless it is sharded."""
        kept = {name: tensor for name, tensor in weights.items() if name not in self.names}
        for name in self.names.intersection(TABLES):
            table = weights[name]
            kept |= {name: table} if isinstance(table, DTensor) else {name + NEW: new_rows(table, self.vocabulary)}
        return kept


def new_rows(table: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Those of marks and codes."""
    span = vocabulary.span("text")
    return torch.cat([table[: span.start], table[span.stop :]])


@torch.no_grad()
def place_new_rows(table: Tensor, new: Tensor, vocabulary: Vocabulary) -> None:
    """`new` of a whole table into this one, or into the rank's part of it."""
    span = vocabulary.span("text")
    local, begin = (table.to_local(), local_box(table)[0][0]) if isinstance(table, DTensor) else (table, 0)
    rows = torch.arange(len(table))
    rows = torch.cat([rows[: span.start], rows[span.stop :]])
    told = f"a table has {len(rows)} rows of marks and codes here, and {len(new)} were saved"
    require(new.shape == (len(rows), table.shape[1]), f"{told}; use the run.json beside the weights")
    here = (rows >= begin) & (rows < begin + len(local))
    local[(rows[here] - begin).to(local.device)] = new[here].to(local)


def digests_of(model: nn.Module, vocabulary: Vocabulary, names: Collection[str]) -> dict[str, str]:
    """SHA-256 of these parameters, part by part, as the model keeps them; of a table the rows of text."""
    hashes = dict[str, "hashlib._Hash"]()
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in names}
    span = vocabulary.span("text")
    for name in sorted(parameters):
        tensor = parameters[name][span.start : span.stop] if name in TABLES else parameters[name]
        digest = hashes.setdefault(base_part(name), hashlib.sha256())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return {part: digest.hexdigest() for part, digest in hashes.items()}


def read_bases(data: bytes, where: str) -> Bases:
    return parse(Bases, data.decode("utf-8", "replace"), where, "choose another step or train again")


def missing(model: nn.Module, saved: Iterable[str], bases: Bases, where: str) -> set[str]:
    """Parameters that a checkpoint does not hold, all of parts that have a base. UserError where one is of none, or
    where it holds one that the model has not."""
    wanted, found = set(model.state_dict()), {name.removesuffix(NEW) for name in saved}
    lost = {name for name in wanted - found if is_adapter(name) or base_part(name) not in {b.part for b in bases.parts}}
    for told, names in (("lacks", lost), ("holds", found - wanted)):
        other = f"{where} is of another configuration: it {told} {min(names, default='')}"
        require(not names, f"{other}; use the run.json beside the weights")
    return {name for name in wanted if name not in set(saved)}


def verify(model: nn.Module, vocabulary: Vocabulary, names: Collection[str], bases: Bases, where: str) -> None:
    """UserError where a base is another than the one that was adapted; names: of what the checkpoint does not hold."""
    found = digests_of(model, vocabulary, names)
    for base in (base for base in bases.parts if base.part in found):
        mine = found[base.part]
        told = f"{base.source} holds other weights of {base.part} than those that {where} adapts"
        shown = f"SHA-256 {mine[:12]}, not {base.sha256[:12]}"
        require(mine == base.sha256, f"{told} ({shown}); put those back{again(base)}")


def again(base: Base) -> str:
    """How to have it again, where that is known."""
    known = base.made_of.partition(":")[0] in ("wheel", "timm", "open_clip", "hf", "torchaudio")
    return (
        f": mmfm import {base.made_of} {base.source}"
        + " --modality trunk" * (base.part in ("trunk", "vocabulary") and not base.made_of.startswith("wheel:"))
        if known
        else ""
    )


def lost(bases: Bases, where: str, why: Exception) -> UserError:
    """For one of the bases that cannot be had."""
    named = next((base for base in bases.parts if base.source in str(why)), bases.parts[0])
    told = f"{where} holds adapters alone, and the weights of {named.part} that they adapt are to be in {named.source}"
    return UserError(f"{told} ({why}); put them back{again(named)}")


def load_over(model: nn.Module, weights: Mapping[str, Tensor], vocabulary: Vocabulary) -> None:
    """What a checkpoint holds, over the base."""
    for name in [name for name in weights if name.endswith(NEW)]:
        place_new_rows(model.get_parameter(name.removesuffix(NEW)), weights[name], vocabulary)
    model.load_state_dict({name: x for name, x in weights.items() if not name.endswith(NEW)}, strict=False)
