"""Judges that a codec may be trained against: each looks at small parts, and says of every part how real it is.

Weights are normalised and activations are not, so that neither the batch nor padding changes what they say.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mmfm.models.codecs.losses import Judged, judged_apart, judged_real


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
