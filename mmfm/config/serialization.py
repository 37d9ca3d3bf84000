"""Strict JSON: frozen dataclasses out and in, with nothing unknown and nothing of another type.

A run of an earlier version lacks the choices that came after it. Each gets its default, and so the default of a new
choice must be what was done before there was one.

Reading a saved run executes nothing: it names no class but those of one's own, whose file the reader must have given
(mmfm/config/extend.py). Standard library only.
"""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

from mmfm.config import Run, UserError, require
from mmfm.config.extend import Extension, saved_class

OLD = {"contrast", "write", "reconstruct"}  # of runs from before the names that people of the field would type
MOVED = {"micro_batch", "activation_checkpointing"}  # from Run.optim to Run.parallel
RESTORE = "restore it from the run's checkpoint folder"


def to_json(run: Run) -> str:
    """Everything that was chosen, in full: defaults too, so that a later default cannot change an old run."""
    return write(run)


def from_json(text: str, where: str = "run.json") -> Run:
    """The run that `to_json` wrote, or did in an earlier version. An unknown key or a wrong type is an error."""
    return parse(Run, text, where, RESTORE, older=True)


def from_file(path: Path) -> Run:
    """The run of a saved run.json. Raises UserError as `from_json` does, and for what is no text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as why:
        raise UserError(f"{path} is not UTF-8 at byte {why.start}; {RESTORE}") from None
    return from_json(text, str(path))


def write(value: Any) -> str:
    """Any frozen dataclass of plain values, tuples and such dataclasses, as JSON that `parse` gives back."""
    return json.dumps(_tree(value), indent=2, allow_nan=False) + "\n"


def _tree(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists; an extension says where its class is written."""
    if isinstance(value, Extension):
        value = value.saved()
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _tree(part) for name, part in value.items()}
    return [_tree(part) for part in value] if isinstance(value, tuple | list) else value


def parse(kind: Any, text: str, where: str, remedy: str = "restore it", *, older: bool = False) -> Any:
    """The `kind` that `write` wrote. Raises UserError for what is no strict JSON, and as `from_json` does.

    older: a key that is missing takes its default, as an older version wrote it when there was no such choice.
    """
    try:
        tree = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as why:
        raise UserError(f"{where} is not strict JSON ({why}); {remedy}") from None
    if kind is Run and isinstance(tree, dict) and OLD & tree.keys():
        raise UserError(f"{where} was written by an older mmfm, whose choices had other names; train the run again")
    return _build(kind, _filled(kind, _moved(kind, tree)) if older else tree, where)


def _moved(kind: Any, tree: Any) -> Any:
    """The tree of a run that had two of its choices of `parallel` in `optim`."""
    if kind is not Run or not isinstance(tree, dict) or not isinstance(tree.get("optim"), dict):
        return tree
    optim = dict(tree["optim"])
    there = {name: optim.pop(name) for name in MOVED & optim.keys()}
    if "activation_checkpointing" in there:
        there["activation_checkpointing"] = "full" if there["activation_checkpointing"] else "none"
    return tree | {"optim": optim} | ({"parallel": there | tree.get("parallel", {})} if there else {})


def _filled(kind: Any, value: Any) -> Any:
    """The tree with the defaults of missing keys, in all its dataclasses; what is no such tree stays as it is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union) and isinstance(value, dict):
        return _filled(_meant([argument for argument in arguments if argument is not type(None)], value), value)
    if origin is tuple and isinstance(value, list):
        return [_filled(arguments[0], item) for item in value]
    if origin is dict and isinstance(value, dict):
        return {name: _filled(arguments[1], item) for name, item in value.items()}
    if not (dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict)):
        return value
    if issubclass(kind, Extension):  # its file is of one content, and so has the same fields
        return value
    hints, filled = typing.get_type_hints(kind), dict(value)
    for field in dataclasses.fields(kind):
        if field.name in value:
            filled[field.name] = _filled(hints[field.name], value[field.name])
        elif field.default is not dataclasses.MISSING:
            filled[field.name] = _tree(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            filled[field.name] = _tree(field.default_factory())
    return filled


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, a JSON tree, as `kind`: a dataclass, tuple, union, Literal or plain type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Extension):
        return _dataclass(saved_class(kind, value, where), value["options"], f"{where}.options")
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _build(_meant([argument for argument in arguments if argument is not type(None)], value), value, where)
    if kind is Any:
        return value
    if origin is dict:
        require(isinstance(value, dict), f"{where}: {value!r} should be an object")
        return {name: _build(arguments[1], one, f"{where}.{name}") for name, one in value.items()}
    if origin is tuple:
        require(isinstance(value, list), f"{where}: {value!r} should be a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        require(len(kinds) == len(value), f"{where}: {value!r} should have {len(kinds)} entries")
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is Literal:
        require(value in arguments, f"{where}: {value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if kind is float and type(value) is int and abs(value) < 1e300:
        return float(value)
    require(type(value) is kind, f"{where}: {value!r} should be of type {getattr(kind, '__name__', kind)}")
    require(kind is not float or math.isfinite(value), f"{where}: {value!r} is no finite number")
    return value


def _meant(kinds: list[Any], value: Any) -> Any:
    """Of several dataclasses the one that shares most keys with the value, in doubt one that has just these, or the
    first: no class is named."""
    keys = set(value) if isinstance(value, dict) else set()
    if len(kinds) == 1:
        return kinds[0]
    names = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    return max(zip(kinds, names, strict=True), key=lambda each: (len(keys & each[1]), keys == each[1]))[0]


_PLAIN = (int, float, str, bool, type(None))


def _offer(kind: Any, names: list[str]) -> list[str]:
    """Each name, with the value it would have by default, as for a file of an older version."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    told = {name: json.dumps(value) for name, value in defaults.items() if isinstance(value, _PLAIN)}
    return [f"{name} (by default {told[name]})" if name in told else name for name in names]


def _dataclass(kind: type, value: Any, where: str) -> Any:
    require(isinstance(value, dict), f"{where}: {value!r} should be an object with the fields of {kind.__name__}")
    declared = typing.get_type_hints(kind)
    hints = {field.name: declared[field.name] for field in dataclasses.fields(kind)}
    unknown, missing = sorted(value.keys() - hints.keys()), sorted(hints.keys() - value.keys())
    require(not unknown, f"{where}: unknown key {', '.join(unknown)}; {kind.__name__} has {', '.join(hints)}")
    require(not missing, f"{where}: missing key of {kind.__name__}; add {', '.join(_offer(kind, missing))}")
    return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in hints})
