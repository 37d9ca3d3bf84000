"""By what two codecs are told apart: codes that one wrote mean nothing to another."""

import hashlib
import json
from dataclasses import asdict

import torch
from torch import nn

from mmfm.config import AudioCodec, ImageCodec, KnownCodec

ELSEWHERE = ("source", "weights")  # where it came from


def fingerprint(codec: nn.Module, cfg: ImageCodec | AudioCodec | KnownCodec) -> str:
    """A hash of a codec's weights, as single precision, and of its configuration but for where it came from."""
    digest = hashlib.blake2b(digest_size=16)
    said = {name: value for name, value in asdict(cfg).items() if name not in ELSEWHERE}
    digest.update(json.dumps([type(cfg).__name__, said], sort_keys=True).encode())
    for name, value in sorted(codec.state_dict().items()):
        kept = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).contiguous()
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(kept.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
