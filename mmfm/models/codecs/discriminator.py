"""Judges that a codec may be trained against: each looks at small parts, and says of every part how real it is.

Weights are normalised and activations are not, so that neither the batch nor padding changes what they say.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mmfm.models.codecs.losses import Judged, judged_apart, judged_real, spectra

WINDOWS = (512, 1024, 2048)


class Patches(nn.Module):
    """Strided convolutions over a map, to one number for each of its parts (arXiv 1611.07004, section 3.2.2)."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [channels, *(width * min(2**place, 8) for place in range(depth))]
        self.halve = nn.ModuleList(
            weight_norm(nn.Conv2d(widths[place], widths[place + 1], 4, stride=2, padding=1)) for place in range(depth)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x: Float[Tensor, "n channels height width"], keep: Bool[Tensor, "n height"]) -> Judged:
        """keep: rows of the map that are real. A side that is no multiple of 2 ** depth is filled with zeros."""
        step = 2 ** len(self.halve)
        x = F.pad(x, (0, -x.shape[3] % step, 0, -x.shape[2] % step))
        keep = F.pad(keep, (0, -keep.shape[1] % step))
        x = x * keep[:, None, :, None]
        for convolution in self.halve:
            keep = keep[:, ::2]
            x = F.leaky_relu(convolution(x), 0.2) * keep[:, None, :, None]
        return Judged(self.last(x)[:, 0], keep)


class Pictures(nn.Module):
    """Of pictures in -1..1."""

    def __init__(self, channels: int = 3, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.patches = Patches(channels, width, depth)

    def forward(self, x: Float[Tensor, "n channels height width"]) -> list[Judged]:
        return [self.patches(x, torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device))]


class Sounds(nn.Module):
    """Of sounds: real and imaginary parts of spectra, each window size with a judge of its own.

    arXiv 2210.13438, section 3.4.
    """

    def __init__(self, windows: Sequence[int] = WINDOWS, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.patches = nn.ModuleList(Patches(2, width, depth) for _ in windows)

    def forward(self, waves: Float[Tensor, "n samples"], keep: Bool[Tensor, "n samples"]) -> list[Judged]:
        return [self._judged(*pair, waves, keep) for pair in zip(self.patches, self.windows, strict=True)]

    def _judged(self, patches: nn.Module, size: int, waves: Tensor, keep: Tensor) -> Judged:
        found, real = spectra(waves, keep, size)
        level = size**0.5  # a spectrum is that of a mean over the window: noise then has one level for all sizes
        return patches(torch.view_as_real(found * level).permute(0, 3, 1, 2), real)


def adversarial(
    critic: Patches,
    found: Float[Tensor, "n channels height width"],
    wanted: Float[Tensor, "n channels height width"],
    keep: Bool[Tensor, "n height"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What the codec learns of its critic, and what the critic learns, summed over the items.

    The first has a gradient for `found` alone and the second for the critic alone, so that one backward pass and one
    optimiser serve both.
    """
    still = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    seen = torch.func.functional_call(critic, still, (found, keep))
    apart = judged_apart([critic(wanted.detach(), keep)], [critic(found.detach(), keep)])
    return judged_real([seen]).sum(), apart.sum()
