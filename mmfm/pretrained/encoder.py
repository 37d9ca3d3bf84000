"""The one face of encoders from other libraries: `tokens = encoder(input, keep)`. Inside is the library's own module.

An encoder is built from its `EncoderSpec` alone. Parameters that its tokens do not depend on (pools, projections,
heads) are buffers: saved and loaded under their own names, but never trained and never waited for.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm.compat.torch import to_buffer
from mmfm.config import EncoderSpec, UserError, require
from mmfm.data.batch import Tokens

Weights = dict[str, Tensor]
SAME = 1e-4  # difference of two passes, as a fraction of the largest number


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a source gave. weights: for `build(blueprint).load_state_dict(weights)`; None where they are to be random.

    tokenizer: the text of tokenizer.json, of a text encoder. scalars: what the whole model learned of one number, such
    as its logit_scale, by name; of an encoder with the source's own pool and projection.
    """

    blueprint: EncoderSpec
    weights: Weights | None
    tokenizer: str | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)


class Encoder(nn.Module):
    """Images: `encoder(pixels [batch, channels, height, width])`, normalised by the blueprint's mean and std.

    Text: `encoder(ids [batch, time], keep)`, ids of the source's own tokenizer, marks included. Sound:
    `encoder(*encoder.features(waves, keep))`. There may be more or fewer tokens than ids; `Tokens.keep` says which
    are real.
    """

    def __init__(self, blueprint: EncoderSpec, trunk: nn.Module) -> None:
        super().__init__()
        self.blueprint, self.trunk = blueprint, trunk
        for name in architecture(blueprint).get("unread", ()):
            owner, _, leaf = name.rpartition(".")
            to_buffer(self.get_submodule(owner), leaf)

    @property
    def width(self) -> int:
        return self.blueprint.width

    def forward(self, x: Tensor, keep: Bool[Tensor, "batch time"] | None = None) -> Tokens:
        raise NotImplementedError

    def features(
        self, waves: Float[Tensor, "batch samples"], keep: Bool[Tensor, "batch samples"]
    ) -> tuple[Tensor, Bool[Tensor, "batch time"]]:
        """What `forward` takes of a batch of sounds at `blueprint.sound.rate_hz`; a value may depend on its clip alone.

        Where the blueprint has a window, clips are padded or cut to it.
        """
        raise UserError(f"a {self.blueprint.modality} encoder has no use for sounds")

    def fills(self) -> bool:
        """Whether it was trained on texts filled to its context, padding and all, by what its own pool reads."""
        return False

    def example(self) -> tuple[Tensor, ...]:
        """An input of one item, to see what the tokens are and what they depend on. It draws no random numbers."""
        made = self.blueprint
        if made.pixels is not None:
            shape = (1, made.pixels.channels, made.pixels.height_px, made.pixels.width_px)
            return (torch.linspace(-1, 1, shape[1] * shape[2] * shape[3]).view(shape),)
        if made.words is not None:
            inner = torch.arange(made.words.context if made.words.fill else 4) % 4
            ids = torch.cat([torch.tensor(made.words.begin).long(), inner, torch.tensor(made.words.end).long()])
            ids = ids[None, : made.words.context]
            return ids, torch.ones_like(ids, dtype=torch.bool)
        assert made.sound is not None
        samples = round(made.sound.rate_hz * (made.sound.window_seconds or 1.0))
        waves = torch.sin(torch.arange(samples) * 0.1)[None]
        return self.features(waves, torch.ones_like(waves, dtype=torch.bool))


def architecture(blueprint: EncoderSpec) -> dict[str, Any]:
    """The JSON object in it. Each library's adapter says what its keys are; "unread" lists the parameters to lay by."""
    return json.loads(blueprint.architecture)


def finish(
    draft: EncoderSpec,
    build: Callable[[EncoderSpec], Encoder],
    weights: Weights | None,
    tokenizer: str | None = None,
    trunk: nn.Module | None = None,
) -> Resolved:
    """`draft` with the width of the tokens, and the names of the parameters that they do not depend on.

    trunk: the library's own module as it loaded it, whose tokens must be those of what the blueprint builds.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():  # it is the graph that is looked at
            encoder = build(draft).eval()
            tokens = encoder(*encoder.example())
            fills = encoder.fills()
        with torch.no_grad():
            again = encoder(*encoder.example()).x
    except UserError:
        raise
    except (AssertionError, RuntimeError, ValueError, TypeError) as why:
        told = f"{type(why).__name__}: {why}"
        raise UserError(
            f"{draft.library} cannot run this {draft.modality} encoder on {_told(draft)} ({told})"
        ) from None
    if not _alike(again, tokens.x):
        raise UserError(
            f"this {draft.library} {draft.modality} encoder draws at random: the same input gives other tokens each "
            "time (as of a masked autoencoder); give the plain encoder of its family"
        )
    if fills and draft.words is not None:
        draft = replace(draft, words=replace(draft.words, fill=True))
    read = {id(parameter) for parameter in leaves(tokens.x)}
    unread = [name for name, parameter in encoder.named_parameters() if id(parameter) not in read]
    shape = json.dumps(architecture(draft) | {"unread": unread})
    blueprint = replace(draft, width=tokens.x.shape[-1], architecture=shape)
    if weights is not None:
        weights = _fitted(weights, encoder, unread)
        if trunk is not None:
            _require_the_librarys(encoder, weights, type(encoder)(draft, trunk).eval())
    return Resolved(blueprint=blueprint, weights=weights, tokenizer=tokenizer)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= SAME * b.abs().max())


@torch.no_grad()
def _require_the_librarys(encoder: Encoder, weights: Weights, theirs: Encoder) -> None:
    """That nothing of the library's configuration was lost on the way into the blueprint."""
    encoder.load_state_dict(weights)
    given = encoder.example()
    made = encoder.blueprint
    told = f"this {made.library} {made.modality} encoder gives other tokens when it is built again from its description"
    require(_alike(encoder(*given).x, theirs(*given).x), f"{told}; give another, and tell us which it was")


def _fitted(weights: Weights, encoder: Encoder, unread: list[str]) -> Weights:
    """Each tensor that the encoder has and no other; those that no token depends on may be lacking."""
    own = encoder.state_dict()
    extra = sorted(weights.keys() - own.keys())
    lacking = sorted(own.keys() - weights.keys() - set(unread))
    other = sorted(name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape)
    for told, names in (("lack", lacking), ("hold, with no place for it,", extra), ("hold in another shape", other)):
        if names:
            raise UserError(
                f"these weights {told} {names[0].removeprefix('trunk.')} ({len(names)} such in all): they are not "
                f"those of this {encoder.blueprint.library} architecture; give the source that they belong to"
            )
    return {name: value.detach() for name, value in (own | weights).items()}


def prefixed(weights: Weights) -> Weights:
    """A trunk's own weights, under the names that they have in an `Encoder`."""
    return {f"trunk.{name}": value.detach() for name, value in weights.items()}


@contextmanager
def rested(module: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards each of its parts has the mode that it had."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


def flat(x: Float[Tensor, "batch *places"], width: int) -> Float[Tensor, "batch time width"]:
    """A feature map, channels first or last, as a sequence of its places in reading order."""
    if x.ndim <= 3:
        return x
    return x.flatten(2).transpose(1, 2) if x.shape[1] == width else x.flatten(1, -2)


def scalars_of(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Of a whole model's weights those of one number that are in none of its parts."""
    return {name: float(x.detach()) for name, x in weights.items() if x.numel() == 1 and "." not in name}


def one_token(x: Tensor, source: str) -> Float[Tensor, "batch 1 width"]:
    """The embedding of each input as its only token. UserError: the model gives something else."""
    told = f"{source} gives {list(x.shape[1:])} numbers of an input, and no single vector; give an encoder of it alone"
    require(x.ndim == 2, f"{told} (--modality)")
    return x[:, None]


def all_real(x: Float[Tensor, "batch time width"]) -> Tokens:
    return Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))


def fit_keep(
    keep: Bool[Tensor, "batch time"],
    tokens: int,
    lengths: Callable[[Int[Tensor, " batch"]], Int[Tensor, " batch"]] | None,
) -> Bool[Tensor, "batch tokens"]:
    """Which of a model's tokens are real, from which of its inputs are. `lengths`: how many of how many inputs.

    A model that does not say it, and shortens its input, spreads every input over its tokens: all of them are real.
    """
    if keep.shape[1] == tokens:
        return keep
    if lengths is None:
        return torch.ones(keep.shape[0], tokens, dtype=torch.bool, device=keep.device)
    real = _counted(keep.sum(1), lengths).clamp(min=1, max=tokens)
    return torch.arange(tokens, device=keep.device) < real[:, None]


def _counted(inputs: Int[Tensor, " batch"], lengths: Callable[[Any], Any]) -> Int[Tensor, " batch"]:
    """Some libraries' functions take one length at a time, or give a length for each of several stages."""
    try:
        found = lengths(inputs)
    except (TypeError, ValueError, RuntimeError):
        found = None
    found = found[-1] if isinstance(found, tuple) else found
    if not isinstance(found, Tensor):
        found = torch.tensor([int(lengths(int(count))) for count in inputs], device=inputs.device)
    return found.long()


def leaves(x: Tensor) -> Iterable[Tensor]:
    """The tensors that a gradient of `x` would reach: nothing is computed, so it costs no memory."""
    waiting, seen = [x.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


def _told(draft: EncoderSpec) -> str:
    made = draft.pixels
    if made is not None:
        return f"pictures of {made.height_px} x {made.width_px} px; try a size that its patches divide, or its own"
    return "its input"
