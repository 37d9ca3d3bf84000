"""What clients may give beside what is read: an unknown name is refused, since what it asks would be dropped."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmfm.compat.transformers import looks_like_a_cache
from mmfm.config import UserError, require

# What clients send to every model and what changes no number of these.
HARMLESS = {"cache_position", "is_first_iteration", "token_type_ids"}
# What clients may ask of a model, a picture's or a sound's processor, and its only answers that are given here.
MODEL = {
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_router_logits": (False,),
    "return_dict": (True,),
}
PICTURES = {
    "do_resize": (True,),
    "do_rescale": (False,),
    "do_normalize": (False,),
    "data_format": ("channels_first",),
    "device": ("cpu",),
}
SOUNDS = {"padding": (True, "longest"), "truncation": (False,), "return_attention_mask": (False,), "device": ("cpu",)}


def check_arguments(
    given: Mapping[str, Any],
    reads: Callable[..., Any] | Iterable[str],
    who: str = "this model",
    only: Mapping[str, tuple[Any, ...]] = MODEL,
) -> None:
    """UserError for what would be dropped: above all what was read before, by a new name.

    reads: what is known, or the function whose parameters are. only: further names, and the values that each may have.
    """
    for name, value in given.items():
        if (
            value is None
            or name in HARMLESS
            or any(value is one or (value == one) is True for one in only.get(name, ()))
        ):
            continue
        if looks_like_a_cache(name, value):
            told = f"{name}={type(value).__name__} is a cache under a name that it does not know to {who}"
            raise UserError(f"{told}; it takes cache or past_key_values")
        if name in only:
            shown = value if isinstance(value, bool | int | float | str) else type(value).__name__
            told = f"{name}={shown} is not possible with {who}, which does as with {name}="
            raise UserError(f"{told}{' or '.join(map(str, only[name]))}; leave it out")
        told = f"{name}={type(value).__name__} is unknown to {who}, which takes"
        raise UserError(f"{told} {', '.join(_names(reads))}; leave it out")


def check_kind(return_tensors: Any) -> None:
    told = f"return_tensors={return_tensors} is unknown; give pt for torch, or np for numpy"
    require(return_tensors in (None, "pt", "np"), told)


def _names(reads: Callable[..., Any] | Iterable[str]) -> list[str]:
    if not callable(reads):
        return sorted(reads)
    every = inspect.signature(reads).parameters.values()
    return [one.name for one in every if one.kind is not one.VAR_KEYWORD and one.name != "self"]
