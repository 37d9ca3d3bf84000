"""Random changes to training input as pure functions of (input, draws, settings): no state, no generator.

Each item carries uniform numbers that depend on its position in the stream alone, so no worker, rank or restart can
change what the model sees. Everything is batched and runs on the device.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.config import Augment
from mmfm.data.batch import Tokens, seeds_of
from mmfm.runtime.randomness import GOLDEN, hash_uniform, splitmix64
from mmfm.runtime.transfer import to_device

# Uniform numbers per item. Of a picture: eight for the affine map, 48 for the mesh, four for what is done while it is
# decoded (three for the crop, one for the mirror), the last four for the blanked rectangle.
DRAWS = 64
HALF = (torch.float16, torch.bfloat16)
HIDDEN, NOISE = 16, 24  # what hashes of an item's draws decide here; HIDDEN takes the eight from there on
MESH = (4, 6)  # control points of the elastic displacement, down and across


def _spread(u: Tensor, size: float) -> Tensor:
    """Uniform in [0, 1) -> uniform in [-size, size)."""
    return (2 * u - 1) * size


def _factor(u: Tensor, size: float) -> Tensor:
    """Uniform in [0, 1) -> log-uniform in [1 / (1 + size), 1 + size)."""
    return (1 + size) ** (2 * u - 1)


def augment_images(
    pixels: Float[Tensor, "n channels height width"], draws: Float[Tensor, "n k"], how: Augment
) -> Float[Tensor, "n channels height width"]:
    """Rotation, scale, shear, shift and a smooth elastic displacement in one resampling; contrast; a blanked rectangle.

    Outside the picture is what its border is. Elastic distortions of handwriting: Simard et al., ICDAR 2003. Cutout:
    arXiv 1708.04552; blank is the darkest value.
    """
    if pixels.dtype in HALF:  # places of pixels need more than eight bits
        return augment_images(pixels.float(), draws, how).to(pixels.dtype)
    if any((how.rotate_deg, how.scale, how.shear, how.translate, how.elastic, how.brightness)):
        pixels = _warp(pixels, draws, how)
    return _cut_out(pixels, draws[:, -4:], how.cutout) if how.cutout else pixels


def _warp(
    pixels: Float[Tensor, "n channels height width"], draws: Float[Tensor, "n k"], how: Augment
) -> Float[Tensor, "n channels height width"]:
    height, width = pixels.shape[2:]
    u, side = draws.to(pixels.dtype), min(height, width)
    y, x = torch.meshgrid(_axis(height, pixels), _axis(width, pixels), indexing="ij")
    angle = _spread(u[:, 0], how.rotate_deg * torch.pi / 180)[:, None, None]
    x_scale, y_scale = (_factor(u[:, i], how.scale)[:, None, None] for i in (1, 2))
    slant = _spread(u[:, 3], how.shear)[:, None, None]
    x_shift, y_shift = (_spread(u[:, i], how.translate * side)[:, None, None] for i in (4, 5))
    across = (angle.cos() * x - angle.sin() * y + slant * y) * x_scale + x_shift
    down = (angle.sin() * x + angle.cos() * y) * y_scale + y_shift
    points = _spread(u[:, 8 : 8 + 2 * MESH[0] * MESH[1]], how.elastic * side).view(len(u), 2, *MESH)
    mesh = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
    grid = torch.stack([(across + mesh[:, 0]) * 2 / width, (down + mesh[:, 1]) * 2 / height], dim=-1)
    warped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gain = _factor(u[:, 6], how.brightness)[:, None, None, None]
    return (((warped + 1) * gain) - 1).clamp(-1, 1)


def _cut_out(
    pixels: Float[Tensor, "n channels height width"], u: Float[Tensor, "n 4"], longest: float
) -> Float[Tensor, "n channels height width"]:
    sides = []
    for i, size in ((0, pixels.shape[2]), (2, pixels.shape[3])):
        places, within = torch.arange(size, device=u.device), torch.full((len(u),), size, device=u.device)
        sides.append(_run(u[:, i], u[:, i + 1], longest * size, within, places))
    return pixels.masked_fill((sides[0][:, :, None] & sides[1][:, None, :])[:, None], -1.0)


def hide_tokens(
    ids: Int[Tensor, "n time"], draws: Float[Tensor, "n k"], chance: float, mask: int, salt: int = 0
) -> Int[Tensor, "n time"]:
    """Each token is masked with this chance, by a hash of the item's draws and its place; another for each `salt`."""
    place = torch.arange(ids.shape[1], device=ids.device)
    return ids.masked_fill(
        hash_uniform(splitmix64(seeds_of(draws))[:, None] + place * GOLDEN, HIDDEN + salt) < chance, mask
    )


def _axis(size: int, like: Tensor) -> Tensor:
    """Pixel centres, in pixels from the middle."""
    return torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2


def stretched(lengths: Int[Tensor, " n"], draws: Float[Tensor, "n k"], how: Augment) -> Int[Tensor, " n"]:
    """How many frames `augment_frames` makes of so many."""
    if not any((how.speed, how.vtlp, how.time_mask, how.freq_mask, how.noise)):
        return lengths
    return (lengths / _factor(draws[:, 0].double(), how.speed)).round().clamp(min=1).long()


def augment_frames(
    frames: Tokens, draws: Float[Tensor, "n k"], how: Augment, lengths: Int[Tensor, " n"] | None = None
) -> Tokens:
    """Speed and formants (VTLP, Jaitly and Hinton 2013), a masked run in time and one in frequency, noise.

    Masks as in SpecAugment (arXiv 1904.08779); a masked cell is the clip's mean. lengths: `stretched`, on the CPU;
    None: the device is asked.
    """
    if not any((how.speed, how.vtlp, how.time_mask, how.freq_mask, how.noise)):
        return frames
    if lengths is None:
        lengths = stretched(frames.keep.sum(1).cpu(), draws.cpu(), how)
    if frames.x.dtype in HALF:
        found = augment_frames(Tokens(frames.x.float(), frames.keep), draws, how, lengths)
        return Tokens(found.x.to(frames.x.dtype), found.keep)
    u = draws.to(frames.x.dtype)
    x, keep = _stretch(frames, _factor(u[:, 0], how.speed), _factor(u[:, 1], how.vtlp), lengths)
    time, bins = torch.arange(x.shape[1], device=x.device), torch.arange(x.shape[2], device=x.device)
    lengths = to_device(lengths, x.device)
    hidden = (
        _run(u[:, 2], u[:, 3], float(how.time_mask), lengths, time)[:, :, None]
        | _run(u[:, 4], u[:, 5], float(how.freq_mask), torch.full_like(lengths, x.shape[2]), bins)[:, None, :]
    )
    x = x.masked_fill(hidden, 0.0)
    # Noise of its own for each cell would need as many draws: a hash of the clip's draws and the cell's place.
    if how.noise:
        places = splitmix64(splitmix64(seeds_of(draws))[:, None] + time * GOLDEN)[:, :, None] + bins * GOLDEN
        x = x + how.noise * _spread(hash_uniform(places, NOISE).to(x.dtype), 3**0.5)
    return Tokens(x * keep.unsqueeze(-1), keep)


def _stretch(
    frames: Tokens, speed: Float[Tensor, " n"], formant: Float[Tensor, " n"], lengths: Int[Tensor, " n"]
) -> Tokens:
    """Resample the spectrogram: `speed` > 1 is shorter, `formant` > 1 is a shorter vocal tract."""
    count, bins = frames.x.shape[1:]
    longest, lengths = int(lengths.max()), to_device(lengths, frames.x.device)
    last = frames.keep.sum(1, keepdim=True) - 1  # of the clip: what lies behind it is padding
    at = torch.minimum(torch.arange(longest, device=frames.x.device) * speed[:, None], last)
    rows = torch.arange(bins, device=frames.x.device) / formant[:, None]
    grid = torch.stack(
        torch.broadcast_tensors(((rows + 0.5) * 2 / bins - 1)[:, None, :], ((at + 0.5) * 2 / count - 1)[:, :, None]),
        dim=-1,
    )
    x = F.grid_sample(frames.x.unsqueeze(1), grid, mode="bilinear", padding_mode="border", align_corners=False)
    keep = torch.arange(longest, device=frames.x.device) < lengths[:, None]
    return Tokens(x.squeeze(1), keep)


def _run(u_length: Tensor, u_start: Tensor, longest: float, within: Tensor, places: Tensor) -> Bool[Tensor, "n places"]:
    """A run of up to `longest` places, and of at most half of what there is, somewhere inside."""
    length = torch.minimum((u_length * (longest + 1)).floor(), within / 2)
    start = (u_start * (within - length + 1)).floor()
    return (places >= start[:, None]) & (places < (start + length)[:, None])
