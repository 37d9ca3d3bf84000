"""An encoder of another library as a tower: what a batch holds goes in, tokens in the encoder's width come out.

A locked tower says the same of the same input for ever, so its tokens can be kept on disk, under a name made of the
weights and of the input: each is computed once, whatever the run, the epoch or the rank.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmfm import config
from mmfm.config import require
from mmfm.data.batch import Tokens
from mmfm.models.adapters import LoraLinear
from mmfm.pretrained import Encoder, build
from mmfm.runtime.files import replace_file

Pixels = Float[Tensor, "batch channels height width"]


class ImportedTower(nn.Module):
    """`width`: of its tokens. `hidden`: the id of a masked token of text, or -1."""

    def __init__(self, cfg: config.Tower) -> None:
        super().__init__()
        self.encoder: Encoder = build(cfg.made)
        self.modality, self.width, self.contract, self.stack = cfg.made.modality, cfg.width, cfg.made, cfg.frame_stack
        self.hidden = -1 if cfg.made.words is None else cfg.made.words.mask
        words = cfg.made.words
        self.unmarked = words is not None and not (words.begin or words.end or words.fill)
        self.pooled = cfg.pool == "mean"
        self.kept = Kept(Path(cfg.feature_cache_dir), cfg.pool) if cfg.feature_cache_dir else None

    def forward(self, x: Tensor, keep: Bool[Tensor, "batch time"]) -> Tokens:
        """Pictures as pixels in -1..1; waveforms at the contract's rate; ids of the tower's own tokenizer."""
        return stacked(self._all(x, keep), self.stack)

    def _all(self, x: Tensor, keep: Bool[Tensor, "batch time"]) -> Tokens:
        if self.kept is None:
            return self._encode(x, keep)
        told = "feature_cache_dir of a tower that trains would soon be wrong; lock it (lr_scale=0), or leave it out"
        learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        require(not learns, told)
        return self.kept(x, keep, self.encoder, self._encode, self.contract)

    def _encode(self, x: Tensor, keep: Bool[Tensor, "batch time"]) -> Tokens:
        tokens = self._tokens(x, keep)
        return mean(tokens) if self.pooled else tokens

    def _tokens(self, x: Tensor, keep: Bool[Tensor, "batch time"]) -> Tokens:
        if self.modality == "image":
            assert self.contract.pixels is not None
            return self.encoder(renormalise(x, self.contract.pixels))
        if self.unmarked and x.shape[1] == 0:  # empty texts alone have no tokens, as beside others
            return Tokens(torch.zeros(len(x), 0, self.width // self.stack, device=x.device, dtype=self._dtype), keep)
        if self.modality == "audio":
            with torch.autocast(x.device.type, enabled=False):  # extractors make numpy arrays, which know no bf16
                x, keep = self.encoder.features(x.float(), keep)
            x = x.to(self._dtype) if x.is_floating_point() else x
        return self.encoder(x, keep)

    @property
    def _dtype(self) -> torch.dtype:
        """Of what its layers read: that of its first weights that are not kept in fewer bits under an adapter."""
        return next(
            p.dtype
            for name, p in self.named_parameters()
            if not name.endswith("weight") or not isinstance(self.get_submodule(name.rpartition(".")[0]), LoraLinear)
        )


def mean(tokens: Tokens) -> Tokens:
    """The average of each row's real tokens, as one."""
    real = tokens.keep.unsqueeze(-1).to(tokens.x.dtype)
    x = (tokens.x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))


def stacked(tokens: Tokens, count: int) -> Tokens:
    """Each `count` tokens in a row as one, side by side, zeros after the last; real where the first of them is."""
    if count == 1:
        return tokens
    rest = -tokens.x.shape[1] % count
    x = nn.functional.pad(tokens.x * tokens.keep.unsqueeze(-1), (0, 0, 0, rest))
    x = x.reshape(x.shape[0], x.shape[1] // count, count * x.shape[2])
    return Tokens(x, nn.functional.pad(tokens.keep, (0, rest))[:, ::count])


def renormalise(pixels: Pixels, how: config.ImagePreprocess) -> Pixels:
    """From -1..1 to the mean and deviation that a tower was trained with."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (how.mean, how.std))
    return (pixels / 2 + 0.5 - mean) / std


class Kept:
    """Tokens by content: one safetensors file for each row, written whole or not at all."""

    def __init__(self, folder: Path, how: str) -> None:
        self.folder, self.how, self.owner = folder, how, ""

    def __call__(
        self,
        x: Tensor,
        keep: Bool[Tensor, "batch time"],
        encoder: nn.Module,
        encode: Callable[[Tensor, Tensor], Tokens],
        contract: config.EncoderSpec | None = None,
    ) -> Tokens:
        """What `encode` gives; only rows that no one has asked for before are computed. Without gradient.

        contract: how the encoder's input is prepared and what it is built as: other tokens belong to another.
        """
        self.owner = self.owner or f"{self.how} {_fingerprint(encoder)} {contract}"
        paths = [self._path(row, mask) for row, mask in zip(x, keep, strict=True)]
        found = [_read(path) for path in paths]
        missing = [row for row, tokens in enumerate(found) if tokens is None]
        if missing:
            with torch.no_grad():
                new = encode(x[missing], keep[missing])
            for place, row in enumerate(missing):
                found[row] = new.x[place][new.keep[place]]
                _write(paths[row], found[row])
        rows = [tokens.to(x.device) for tokens in found if tokens is not None]
        lengths = torch.tensor([len(tokens) for tokens in rows], device=x.device)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Tokens(padded, torch.arange(padded.shape[1], device=x.device) < lengths[:, None])

    def _path(self, row: Tensor, keep: Bool[Tensor, " time"]) -> Path:
        """Of what is real in the row; padding does not count."""
        real = row[keep] if row.shape[:1] == keep.shape and row.ndim == 1 else row
        said = f"{self.owner} {precision(row.device.type)} {real.dtype} {tuple(real.shape)} "
        key = hashlib.blake2b(said.encode(), digest_size=16)
        key.update(real.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        name = key.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"


def precision(device: str) -> str:
    """In what arithmetic modules run now: that of autocast, where it is on, and that of fp32 products."""
    cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "as it is"
    return f"{cast} {torch.get_float32_matmul_precision()}"


def _fingerprint(encoder: nn.Module) -> str:
    """Of all weights and buffers."""
    key = hashlib.blake2b(digest_size=16)
    for name, value in encoder.state_dict().items():
        key.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        key.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return key.hexdigest()


def _read(path: Path) -> Tensor | None:
    """None where there is none, or none that is whole: then it is made again."""
    try:
        return load_file(path)["tokens"]
    except (OSError, SafetensorError, KeyError):
        return None


def _write(path: Path, tokens: Tensor | None) -> None:
    assert tokens is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, save({"tokens": tokens.detach().cpu().contiguous()}))
