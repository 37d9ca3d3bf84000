"""Which parameters learn and decay, how fast, and what the learning rate is at a step."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmfm.config import Optim, ParamGroup, Run, require
from mmfm.data.vocabulary import Vocabulary
from mmfm.models.adapters import adapted_parts, adapters_of, is_adapter, part_of, sizes_of
from mmfm.models.model import UnifiedModel
from mmfm.training.layer_decay import distances
from mmfm.training.muon import Muon

LANGUAGE_TABLES = ("embedding.weight", "output.weight")  # that a language model brings with its trunk
ALSO = {name: f"trunk.{name}" for name in LANGUAGE_TABLES}


def factors(model: nn.Module, rates: Sequence[ParamGroup], also: Mapping[str, str] | None = None) -> dict[str, float]:
    """Each parameter's factor of the learning rate: that of the last pattern that matches its name, else 1; with a
    `layer_decay` less, the further it is from the end of its tower or of the trunk.

    `also`: further names of parameters, such as `ALSO` where the trunk is a language model: its tables are part of it,
    and a trunk that rests under a table that learns would soon understand nothing. Raises UserError for a pattern that
    matches nothing. Parts with adapters are locked but for these, and for what a pattern names that names no adapter.
    """
    names = [name for name, _ in model.named_parameters()]
    found = dict.fromkeys(names, 1.0) | dict.fromkeys(resting(model, names, also or {}), 0.0)
    for rate in rates:
        known = {name: (name, (also or {}).get(name, name)) for name in names}
        matching = [name for name in names if any(fnmatchcase(called, rate.pattern) for called in known[name])]
        near = difflib.get_close_matches(rate.pattern, names, n=1, cutoff=0.0)
        require(
            bool(matching),
            f"optim.param_groups: no parameter is called {rate.pattern!r}; the nearest is {''.join(near)}",
        )
        matching = of_adapters(model, matching, also or {}, rate)
        found |= dict.fromkeys(matching, rate.lr_scale)
        if rate.layer_decay < 1:
            far = distances(model, matching)
            require(bool(far), f"optim.param_groups: {rate.pattern!r} has a layer_decay, and names no tower or trunk")
            found |= {
                name: rate.lr_scale * rate.layer_decay**layers for name, layers in far.items() if name in matching
            }
    require(any(found.values()), "optim.param_groups lock every parameter, so that nothing learns; leave some out")
    return found


def resting(model: nn.Module, names: Sequence[str], also: Mapping[str, str]) -> list[str]:
    """Parameters of parts that have adapters, but for the adapters."""
    parts = adapted_parts(model)
    return [name for name in names if part_of(also.get(name, name)) in parts and not is_adapter(name)]


def of_adapters(model: nn.Module, matching: Sequence[str], also: Mapping[str, str], rate: ParamGroup) -> Sequence[str]:
    """What a pattern decides: where it matches adapters, these and no weights that rest under them."""
    if rate.lr_scale == 0:
        return matching
    if any(map(is_adapter, matching)):
        rest = set(resting(model, matching, also))
        return [name for name in matching if name not in rest]
    under = {f"{name}.weight" for name, _ in adapters_of(model)}.intersection(matching)
    told = f"optim.param_groups: {rate.pattern!r} names {min(under, default='')}, which rests under an adapter"
    require(not under, f"{told}; narrow the pattern, or Lora.pattern")
    return matching


class Learning(NamedTuple):
    """How each parameter learns: its factor of the rate; tables whose rows of text are held; the same for people."""

    factor: dict[str, float]
    held: tuple[str, ...]
    lines: tuple[str, ...]


def learning(model: UnifiedModel, run: Run) -> Learning:
    """By `optim.param_groups` and by what the objectives ask. UserError for a pattern that matches nothing."""
    also = ALSO if run.model.trunk.weights else {}
    factor = factors(model, run.optim.param_groups, also) | dict.fromkeys(unasked(model, run), 0.0)
    held = held_tables(run, factor) if writes(run) or not adapted_parts(model) else ()
    lines = [*told(model, factor, run.optim.param_groups, also)]
    lines += [f"of {name} the rows of text are locked; those of marks and codes are new and learn" for name in held]
    lines += tied(model, factor, held)
    return Learning(factor | dict.fromkeys(held, 1.0), held, tuple(lines))


def tied(model: UnifiedModel, factor: Mapping[str, float], held: Collection[str]) -> Iterator[str]:
    """What is said of tables that learn above a trunk that is locked, which soon would understand them no more."""
    trunk = [name for name in factor if name.startswith("trunk.")]
    learns = [name for name in LANGUAGE_TABLES if factor.get(name) and name not in held]
    if trunk and not any(factor[name] for name in trunk) and learns:
        what = (
            "the table of its input and, as the trunk ties them, of its output" if model.output is None else "a table"
        )
        yield (
            f"the trunk is locked, and {' and '.join(learns)} learns, {what}; to lock it too, add "
            "ParamGroup(pattern='embedding.*', lr_scale=0)" + ("" if model.output is None else " and 'output.*'")
        )


def unasked(model: UnifiedModel, run: Run) -> list[str]:
    """Parameters that no objective trains: codecs that are not reconstructed, and all else where only they are."""
    learned = tuple(f"codecs.{item.modality}." for item in run.reconstruction)
    alone = not (run.contrastive or run.generative or run.objectives or run.chat or run.distil)
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if not name.startswith(learned) and (alone or name.startswith("codecs."))]


def held_tables(run: Run, factor: Mapping[str, float]) -> tuple[str, ...]:
    """A language model's tables that are locked with its trunk, in which the rows of marks and codes are new and must
    learn all the same. One that a pattern names by its own name is locked whole."""
    by_name = {name for rate in run.optim.param_groups for name in LANGUAGE_TABLES if fnmatchcase(name, rate.pattern)}
    mine = [name for name in LANGUAGE_TABLES if factor.get(name) == 0 and name not in by_name]
    return tuple(mine) if run.model.trunk.weights else ()


def writes(run: Run) -> bool:
    """Whether marks and codes of the vocabulary are written, whose rows are new beside those of a language model."""
    own_end = run.chat is not None and run.model.chat is not None and not run.model.chat.end
    return bool(run.generative or run.objectives or own_end)


def told(
    model: nn.Module, factor: Mapping[str, float], rates: Sequence[ParamGroup], also: Mapping[str, str]
) -> Iterator[str]:
    """Which parameters learn how fast: a line for each pattern with what it decides, and some for all else."""
    sizes = sizes_of(model)
    decided = dict[str, list[str]]()
    for name in sizes:
        mine = [
            r.pattern for r in rates if any(fnmatchcase(called, r.pattern) for called in (name, also.get(name, name)))
        ]
        decided.setdefault(mine[-1] if mine else "all else", []).append(name)
    for what in (*dict.fromkeys(rate.pattern for rate in rates), "all else"):
        names = decided.get(what, [])
        decay = {rate.pattern: rate.layer_decay for rate in rates}.get(what, 1.0)
        if names and decay < 1:
            yield _line_of_layers(what, {name: sizes[name] for name in names}, [factor[name] for name in names], decay)
            continue
        kinds = {(factor[name], is_adapter(name)) for name in names}
        for value, of in sorted(kinds, reverse=True):
            mine = {name: sizes[name] for name in names if (factor[name], is_adapter(name)) == (value, of)}
            named = "adapters" if what == "all else" else f"adapters of {what}"
            yield _line(named if of else what, mine, value)
        if not names and what != "all else":
            yield f"{what}: decides nothing, as later patterns match all that it names"


def _line(what: str, sizes: Mapping[str, int], factor: float) -> str:
    parts = sorted({name.split(".")[0] for name in sizes})
    how = "locked" if factor == 0 else f"at {factor:g} x the rate"
    return f"{what}: {sum(sizes.values()):,} parameters {how}" + (f" ({', '.join(parts)})" if parts else "")


def _line_of_layers(what: str, sizes: Mapping[str, int], factors: Sequence[float], decay: float) -> str:
    whole = _line(what, sizes, max(factors))
    if not max(factors):
        return whole
    span = f"at {min(factors):.3g} to {max(factors):g} x the rate, {decay:g} times for each layer towards the input"
    return whole.replace(f"at {max(factors):g} x the rate", span)


def hold_text(table: nn.Parameter, vocabulary: Vocabulary) -> None:
    """The rows of text keep what they are, and those of marks and codes learn: a gradient of zero moves nothing where
    the table does not decay."""
    span = vocabulary.span("text")

    def still(gradient: Tensor) -> Tensor:
        rows = torch.arange(len(gradient), device=gradient.device)
        held = (rows >= span.start) & (rows < span.stop)
        return gradient.masked_fill(held.view(-1, *[1] * (gradient.ndim - 1)), 0)

    table.register_hook(still)


def parameter_groups(
    model: nn.Module, optim: Optim, factor: Mapping[str, float] | None = None, plain: Collection[str] = ()
) -> list[dict]:
    """Matrices decay; vectors, scalars, embedding tables and positions do not. Checked to be a partition.

    `factor`: of `factors`; what learns at another rate is in a group of its own. `plain`: further ones without decay.
    With Muon groups say whether they are its own, which the matrices of blocks are.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    live = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, p in live:
        decays = p.ndim >= 2 and id(p) not in tables and name not in plain and "weight" in name.rpartition(".")[2]
        muon = optim.optimizer == "muon" and decays and p.ndim == 2 and ".blocks." in name
        groups.setdefault(((factor or {}).get(name, 1.0), decays, muon), []).append(p)
    assert sum(map(len, groups.values())) == len(live)
    return [
        {"params": groups[of, decays, muon], "weight_decay": optim.weight_decay * decays, "lr": optim.lr * of}
        | ({"muon": muon} if optim.optimizer == "muon" else {})
        for of, decays, muon in sorted(groups, reverse=True)
    ]


def adamw(
    model: nn.Module, optim: Optim, factor: Mapping[str, float] | None = None, plain: Collection[str] = ()
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) as one fused kernel per group, each at its own rate; or Muon and it."""
    groups = parameter_groups(model, optim, factor, plain)
    kind = Muon if optim.optimizer == "muon" else torch.optim.AdamW
    return kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def set_learning(model: UnifiedModel, run: Run) -> Learning:
    """`learning`, by which the model is locked where it says so, and its rows of text are held."""
    found = learning(model, run)
    for name in found.held:
        hold_text(model.get_parameter(name), model.vocabulary)
    model.lock([name for name, factor in found.factor.items() if factor == 0])
    return found


def optimizer_of(module: nn.Module, optim: Optim, found: Learning) -> torch.optim.AdamW:
    """That of a training: `module` holds the model that `found` is of as its `model`."""
    factor = {f"model.{name}": value for name, value in found.factor.items()}
    return adamw(module, optim, factor, [f"model.{name}" for name in found.held])
