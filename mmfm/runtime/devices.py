"""Where a model computes, and in which precision, by the names that people give."""

import sys

import torch

from mmfm.compat.torch import processor
from mmfm.config import UserError, require
from mmfm.runtime.rendezvous import device_of_rank

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by a run's precision
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# Any of these, as torch names them, has kernels of oneDNN for products of the type; others go number by number.
PRODUCTS = {
    torch.bfloat16: ("avx512_bw", "avx_ne_convert", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "avx_ne_convert", "amx_fp16", "fp16_arith"),
}


def device_of(name: str | torch.device = "auto") -> torch.device:
    """The name "auto" is the first GPU if there is one, else the CPU. UserError: a device that there is not."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"device {name!r} is not known; give auto, cpu, cuda or cuda:1") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0}
    count = there.get(device.type, int(device.type == "mps" and torch.backends.mps.is_available()))
    told = f"device {str(name)!r} is not there: torch finds {there['cuda']} GPUs"
    require((device.index or 0) < count, f"{told}; give auto or cpu")
    return device


def device_of_each(name: str, accelerator: str) -> torch.device:
    """`device_of` for one of several ranks: a GPU of its own. accelerator: what "auto" stands for, as a run says it."""
    if name == "auto":
        return device_of_rank(accelerator)
    device = device_of(name)
    return device_of_rank("auto") if name == "cuda" else device


def dtype_of(name: str | torch.dtype | None) -> torch.dtype:
    """None is float32, as weights are kept. UserError: what no model computes in."""
    if name is None:
        return torch.float32
    found = DTYPES.get(str(name).removeprefix("torch."))
    if found is None:
        raise UserError(f"dtype {str(name)!r} is not known; give {', '.join(DTYPES)}")
    return found


def inference_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of weights and activations of a model that only reads: on a GPU that of a run's precision; on a CPU float32, as
    most are not faster in half precision."""
    return AUTOCAST.get(precision, torch.float32) if device.type != "cpu" else torch.float32


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Activations in a run's precision, weights as they are. In fp32 what surrounds it stays."""
    kind = AUTOCAST.get(precision)
    return torch.autocast(device.type, kind, enabled=kind is not None or torch.is_autocast_enabled(device.type))


def slow_products(dtype: torch.dtype, device: torch.device) -> str:
    """What is to be said where a processor has no instructions for products of this type; else, or where torch does not
    tell, nothing."""
    found, wanted = processor(), PRODUCTS.get(dtype)
    if device.type != "cpu" or wanted is None or not found or any(found.get(name) for name in wanted):
        return ""
    name = str(dtype).removeprefix("torch.")
    return f"this processor has no instructions for products in {name}: they take several times as long as in float32"


def tell_slow_products(dtype: str, device: str) -> None:
    """One line on the standard error where these two of a command's options ask for slow products."""
    slow = "" if dtype in ("auto", "int8") else slow_products(dtype_of(dtype), device_of(device))
    if slow:
        print(f"mmfm: {slow}; leave out --dtype {dtype}", file=sys.stderr, flush=True)
