"""Where a model computes, and in which precision, by the names that people give."""

import torch

from mmfm.config import UserError, require
from mmfm.runtime.rendezvous import device_of_rank

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by a run's precision
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


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
