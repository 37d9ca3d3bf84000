"""CLIP's two towers (arXiv 2103.00020): the function and the gradients of the usual padded form, in half its work.

Three facts make it so. The text tower is causal, so texts that begin alike have equal states there: a batch is a tree
of prefixes, each of whose nodes is computed once, and nothing is padded. One place of each sequence is read out, so the
last block computes that place alone. Patches do not overlap, so one matrix product embeds them.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.config import require
from mmfm.layers import Attention, Block, Mlp, initialise


class Grid(NamedTuple):
    """Sequences of one length, token after token; each is read out at its first place."""

    batch: int
    time: int

    causal = False

    def spread(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "batch time width"]:
        return x.view(self.batch, self.time, -1)

    def collect(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "tokens width"]:
        return x.flatten(0, 1)

    def read(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "batch width"]:
        return self.spread(x)[:, 0]

    def seen(self) -> None:
        """By the place that is read out: everything."""


class PrefixTree(NamedTuple):
    """Sequences as paths from a root; each is read out at its last place.

    token, depth: of each node. path: the nodes of each sequence, then node 0 as filling that no one sees. place: one
    flat place in `path` where the node stands. end: index of each sequence's last place.
    """

    token: Int[Tensor, " nodes"]
    depth: Int[Tensor, " nodes"]
    path: Int[Tensor, "batch time"]
    place: Int[Tensor, " nodes"]
    end: Int[Tensor, " batch"]

    causal = True

    def spread(self, x: Float[Tensor, "nodes width"]) -> Float[Tensor, "batch time width"]:
        return F.embedding(self.path, x)

    def collect(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "nodes width"]:
        return x.flatten(0, 1).index_select(0, self.place)

    def read(self, x: Float[Tensor, "nodes width"]) -> Float[Tensor, "batch width"]:
        return x.index_select(0, self.path.gather(1, self.end[:, None])[:, 0])

    def seen(self) -> Bool[Tensor, "batch 1 1 time"]:
        """By the place that is read out: all up to it."""
        return (torch.arange(self.path.shape[1], device=self.end.device) <= self.end[:, None])[:, None, None]


Layout = Grid | PrefixTree


def prefix_tree(ids: Int[Tensor, "batch time"]) -> PrefixTree:
    """Each row ends with its largest id, the end mark (CLIP's rule); what follows the first of it is not looked at."""
    end = ids.argmax(1)
    time = int(end.max()) + 1
    number: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    nodes, paths = [], []
    for row, (tokens, last) in enumerate(zip(ids.tolist(), end.tolist(), strict=True)):
        node, path = -1, []
        for depth, token in enumerate(tokens[: last + 1]):
            step = (node, token)
            if step not in number:
                number[step] = len(nodes)
                nodes.append((token, depth, row * time + depth))
            node = number[step]
            path.append(node)
        paths.append(path + [0] * (time - len(path)))
    token, depth, place = torch.tensor(nodes, device=ids.device).unbind(1)
    return PrefixTree(token, depth, torch.tensor(paths, device=ids.device), place, end)


def attend(
    q: Float[Tensor, "batch query heads dim"],
    k: Float[Tensor, "batch time heads dim"],
    v: Float[Tensor, "batch time heads dim"],
    mask: Bool[Tensor, "batch 1 1 time"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch query width"]:
    """Scaled dot-product attention. With heads beside time, no copy on the way in, one on the way back."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2)


def attention_input(x: Tensor) -> Tensor:
    """fp32 for bf16 on a CPU, where bf16 attention takes several times as long to differentiate and is less exact."""
    return x.float() if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x


def encode(block: Block, x: Float[Tensor, "tokens width"], layout: Layout) -> Float[Tensor, "tokens width"]:
    """All places of a pre-norm block."""
    qkv = layout.spread(attention_input(block.attn.qkv(block.norm1(x))))
    with torch.autocast(x.device.type, enabled=False):
        out = attend(*qkv.unflatten(2, (3, block.attn.heads, -1)).unbind(2), causal=layout.causal)
    x = x + block.attn.proj(layout.collect(out))
    return x + block.mlp(block.norm2(x))


def encode_read(block: Block, x: Float[Tensor, "tokens width"], layout: Layout) -> Float[Tensor, "batch width"]:
    """Of a pre-norm block, the place that each sequence is read out at; of the others it needs keys and values only."""
    normed, heads, sizes = block.norm1(x), block.attn.heads, [x.shape[1], 2 * x.shape[1]]
    (weight_q, weight_kv), (bias_q, bias_kv) = block.attn.qkv.weight.split(sizes), block.attn.qkv.bias.split(sizes)
    q = attention_input(F.linear(layout.read(normed), weight_q, bias_q))
    kv = layout.spread(attention_input(F.linear(normed, weight_kv, bias_kv)))
    with torch.autocast(x.device.type, enabled=False):
        out = attend(q.unflatten(1, (1, heads, -1)), *kv.unflatten(2, (2, heads, -1)).unbind(2), mask=layout.seen())
    x = layout.read(x) + block.attn.proj(out[:, 0])
    return x + block.mlp(block.norm2(x))


class Tower(nn.Module):
    """Blocks, a norm and a projection, over the tokens of a layout."""

    def __init__(self, width: int, depth: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block((nn.LayerNorm(width), nn.LayerNorm(width)), Attention(width, heads), Mlp(width, 4 * width))
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, embed_dim, bias=False)

    def embed(self, x: Float[Tensor, "tokens width"], layout: Layout) -> Float[Tensor, "batch embed"]:
        *blocks, last = cast(list[Block], list(self.blocks))
        for block in blocks:
            x = encode(block, x, layout)
        return self.head(self.norm(encode_read(last, x, layout)))


class ImageTower(Tower):
    """Patches behind a class token, with learned positions and a norm before the first block."""

    def __init__(self, cfg: config.Vit, embed_dim: int) -> None:
        super().__init__(cfg.width, cfg.depth, cfg.heads, embed_dim)
        self.patch_px = cfg.patch_px
        self.patch = nn.Linear(cfg.channels * cfg.patch_px**2, cfg.width, bias=False)
        self.start = nn.Parameter(cfg.width**-0.5 * torch.randn(cfg.width))
        self.position = nn.Parameter(cfg.width**-0.5 * torch.randn(cfg.tokens + 1, cfg.width))
        self.norm_pre = nn.LayerNorm(cfg.width)

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch embed"]:
        side = self.patch_px
        patches = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        x = self.patch(patches.flatten(3).flatten(1, 2))
        x = torch.cat([self.start.to(x.dtype).expand(len(x), 1, -1), x], dim=1) + self.position.to(x.dtype)
        return self.embed(self.norm_pre(x).flatten(0, 1), Grid(*x.shape[:2]))


class TextTower(Tower):
    """Token ids with learned positions; each text is read out at its end mark."""

    def __init__(self, cfg: config.TextTower, vocabulary: int, context: int, embed_dim: int) -> None:
        super().__init__(cfg.width, cfg.depth, cfg.heads, embed_dim)
        self.embedding = nn.Embedding(vocabulary, cfg.width)
        self.position = nn.Parameter(0.01 * torch.randn(context, cfg.width))

    def forward(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch embed"]:
        tree = prefix_tree(ids)
        return self.embed(self.embedding(tree.token) + self.position[tree.depth], tree)


class Clip(nn.Module):
    """An image tower and a text tower, with open_clip's two methods. Pixels are normalised, texts end with a mark."""

    def __init__(
        self, image: config.Vit, text: config.TextTower, *, vocabulary: int, context: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.image = ImageTower(image, embed_dim)
        self.text = TextTower(text, vocabulary, context, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        initialise(self)

    def encode_image(
        self, pixels: Float[Tensor, "batch channels height width"], normalize: bool = False
    ) -> Float[Tensor, "batch embed"]:
        features = self.image(pixels)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, ids: Int[Tensor, "batch time"], normalize: bool = False) -> Float[Tensor, "batch embed"]:
        features = self.text(ids)
        return F.normalize(features, dim=-1) if normalize else features


RENAMES = (  # open_clip's names to ours, all of them in this order
    (r"^(transformer\.|token_embedding\.|positional_embedding$|ln_final\.|text_projection$)", r"text.\1"),
    (r"^visual\.", "image."),
    (r"\.transformer\.resblocks\.", ".blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.class_embedding$", ".start"),
    (r"\.positional_embedding$", ".position"),
    (r"\.conv1\.weight$", ".patch.weight"),
    (r"\.token_embedding\.", ".embedding."),
    (r"\.ln_pre\.", ".norm_pre."),
    (r"\.(ln_post|ln_final)\.", ".norm."),
    (r"\.(proj|text_projection)$", ".head.weight"),
)


def from_open_clip(state: Mapping[str, Tensor], head_dim: int = 64) -> Clip:
    """The model of an open_clip `CLIP` state: ViT with class token, causal text transformer, exact GELU.

    Sizes are those of the weights; `head_dim`, which weights do not show, is 64 in all of open_clip's ViT up to L.
    Weights trained with QuickGELU are not told apart and give other features. UserError: a tensor too many or too few.
    """
    weights = {_our_name(name): tensor for name, tensor in state.items()}
    for name in ("image.head.weight", "text.head.weight"):
        if name in weights:
            weights[name] = weights[name].T
    model = _of_sizes({name: tensor.shape for name, tensor in weights.items()}, head_dim)
    wrong = sorted(weights.keys() ^ model.state_dict().keys())
    require(not wrong, f"no CLIP of open_clip: {', '.join(wrong)} is missing or unknown; give the state of a ViT CLIP")
    weights["image.patch.weight"] = weights["image.patch.weight"].flatten(1)
    model.load_state_dict(weights)
    return model


def _our_name(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _of_sizes(shapes: Mapping[str, torch.Size], head_dim: int) -> Clip:
    needed = ("image.patch.weight", "image.position", "image.head.weight", "text.embedding.weight", "text.position")
    missing = [name for name in needed if name not in shapes]
    require(not missing, f"no CLIP of open_clip: {', '.join(missing)} is missing; give the state of a ViT CLIP")
    width, channels, patch_px, _ = shapes["image.patch.weight"]
    side_px = patch_px * math.isqrt(shapes["image.position"][0] - 1)
    vocabulary, text_width = shapes["text.embedding.weight"]
    depth = {
        tower: len({name.split(".")[2] for name in shapes if name.startswith(f"{tower}.blocks.")})
        for tower in ("image", "text")
    }
    image = config.Vit(
        height_px=side_px,
        width_px=side_px,
        patch_px=patch_px,
        channels=channels,
        width=width,
        depth=depth["image"],
        heads=width // head_dim,
    )
    text = config.TextTower(width=text_width, depth=depth["text"], heads=text_width // head_dim)
    embed_dim, context = shapes["image.head.weight"][0], shapes["text.position"][0]
    return Clip(image, text, vocabulary=vocabulary, context=context, embed_dim=embed_dim)
