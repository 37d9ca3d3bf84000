"""Towers, connectors, one trunk, one vocabulary, heads. `build` is the only way from a configuration to a module.

image -> tower -> connector -> [i i i i pool] --+
                                                +-> trunk -> pool -> head -> embedding   (contrast)
text  -> vocabulary embedding -> [begin t t t] -+         -> t t t -> logits             (write)

A trunk without layers makes a dual encoder: each tower gives one token, which is the embedding but for projections.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.data.augment import augment_frames, augment_images, hide_tokens, stretched
from mmfm.data.batch import Ids, Items, Raw, Tokens
from mmfm.data.vocabulary import CodeFormat, Vocabulary
from mmfm.models.adapters import adapt
from mmfm.models.codecs import AudioAutoencoder, Codec, make_codec
from mmfm.models.conformer import AudioConformer, KaldiMel, LogMel
from mmfm.models.dropout import Dropout, DropoutKey, number_dropouts
from mmfm.models.execution import Recompute, TrainedBlock
from mmfm.models.imported import ImportedTower
from mmfm.models.layers import init_weights, positions_of
from mmfm.models.packing import real_places
from mmfm.models.projectors import Projector, connect, connected, connector
from mmfm.models.read_counts import ReadCounts
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.token_dropout import keep_mask, patch_subset
from mmfm.models.towers import EmbeddedText, OwnTower, Tower, make_tower
from mmfm.models.transformer import Segment, UnifiedTransformer
from mmfm.models.vit import VisionTransformer, normalise
from mmfm.runtime.distributed import full_tensor
from mmfm.runtime.transfer import to_device

START = {"softmax": (1 / 0.07, 0.0), "sigmoid": (10.0, -10.0)}  # (scale, bias), of the two papers

# Bounds of the logarithm of an inverse temperature: CLIP's; SigLIP's learns without, and ends above 100.
LOG_SCALES = {"softmax": (0.0, math.log(100)), "sigmoid": (-math.inf, math.inf)}


class UnifiedModel(nn.Module):
    """One model of all modalities. Its methods give the pieces of a pass; `objectives.task_pass` puts them together."""

    def __init__(
        self,
        towers: dict[str, Tower],
        trunk: UnifiedTransformer,
        vocabulary: Vocabulary,
        embed_dim: int,
        contrast: Sequence[config.Contrastive] = (),
        augment: config.Augment | None = None,
        connector_dropout: float = 0.0,
        codecs: Mapping[str, nn.Module] | None = None,
        projectors: Sequence[config.Projector] = (),
    ) -> None:
        super().__init__()
        self.vocabulary, self.augment, self.embed_dim = vocabulary, augment or config.Augment(), embed_dim
        self.towers, self.trunk = nn.ModuleDict(towers), trunk
        deep, width = len(trunk.blocks) > 0, trunk.width
        asked = {one.modality: one for one in projectors}
        plain = {n: not deep and t.width == width and n not in asked for n, t in towers.items()}
        bare = {n: isinstance(t, EmbeddedText) or plain[n] for n, t in towers.items()}
        self.connectors = nn.ModuleDict(
            {n: nn.Identity() if bare[n] else connector(asked.get(n), t, width) for n, t in towers.items()}
        )
        self.pools = nn.ParameterDict({name: nn.Parameter(width**-0.5 * torch.randn(width)) for name in towers if deep})
        same = not deep and width == embed_dim
        self.heads = nn.ModuleDict(
            {name: nn.Identity() if same else nn.Linear(width, embed_dim, bias=False) for name in towers}
        )
        self.embedding = nn.Embedding(vocabulary.size, trunk.width)
        self.output = None if trunk.tied else nn.Linear(trunk.width, vocabulary.size, bias=False)
        start = {item.name: START[item.loss] for item in contrast}
        self.log_scale_bounds = {item.name: LOG_SCALES[item.loss] for item in contrast}
        self.log_scales = nn.ParameterDict({k: nn.Parameter(torch.tensor([v[0]]).log()) for k, v in start.items()})
        self.biases = nn.ParameterDict({k: nn.Parameter(torch.tensor([v[1]])) for k, v in start.items()})
        # Last: dropouts are numbered by their place, and those of before keep theirs.
        self.dropouts = nn.ModuleDict({name: Dropout(connector_dropout) for name in towers})
        self.codecs = nn.ModuleDict(codecs or {})
        self.read_counts = trunk.read_counts = ReadCounts([*towers])
        self.forms = {
            "text": CodeFormat((vocabulary.text,), empty=True),
            **{name: self.codec(name).form for name in self.codecs},
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        _scales_as_vectors(state_dict, prefix)  # no hook, which a copy of the model would not bear
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def lock(self, names: Collection[str]) -> None:
        """These parameters do not learn; what holds no others is at rest: no dropout, no running statistics."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in names and parameter.is_floating_point())
        self.train(self.training)

    def train(self, mode: bool = True) -> "UnifiedModel":
        super().train(mode)
        for module in (part for part in self.modules() if part is not self):
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def trained_blocks(self) -> list[TrainedBlock]:
        """Our own blocks; those of other libraries run as they do there."""
        return [module for module in self.modules() if isinstance(module, TrainedBlock)]

    def set_grad_checkpointing(self, recompute: Recompute = "full") -> None:
        """What our own blocks compute again in backward."""
        for block in self.trained_blocks():
            block.recompute = recompute

    def set_compile(self, backend: str | Callable[..., Any] | None = "inductor") -> None:
        """Our own blocks are compiled but for attention; None: not any more."""
        for block in self.trained_blocks():
            block.set_compile(backend)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def exact_dtype(self) -> torch.dtype:
        """Of what losses read: single precision or better, whatever the weights are at the moment."""
        return torch.promote_types(self.dtype, torch.float32)

    def scale(self, pair: str) -> Float[Tensor, ""]:
        """The learned inverse temperature of a pair, of a softmax at most 100 (CLIP, arXiv 2103.00020, section 2.5).

        Its gradient is as if there were no bounds, so that a parameter beyond them comes back.
        """
        free = full_tensor(self.log_scales[pair]).reshape(()).to(self.exact_dtype)
        return (free + (free.clamp(*self.log_scale_bounds[pair]) - free).detach()).exp()

    def bias(self, pair: str) -> Float[Tensor, ""]:
        """What is added to each score of a pair whose loss is a sigmoid."""
        return full_tensor(self.biases[pair]).reshape(()).to(self.exact_dtype)

    @torch.no_grad()
    def clamp_scales(self) -> None:
        """After a step: what learns of them is put back within its bounds, as open_clip does it."""
        for pair, parameter in self.log_scales.items():
            if parameter.requires_grad:
                parameter.clamp_(*self.log_scale_bounds[pair])

    def tokens(self, modality: str, items: Items) -> Tokens:
        """The tower's tokens for these items, augmented where they carry draws; those that they carry as they are."""
        if items.tokens is not None:
            return items.tokens
        tower, x, draws = self.towers[modality], items.x, items.draws
        lengths = None if torch.compiler.is_compiling() else items.facts.lengths
        if modality == "image":
            x = normalise(x, self.dtype)
            x = x if draws is None else augment_images(x, draws, self.augment)
        chance = self.augment.source_token_dropout
        if isinstance(tower, EmbeddedText):
            shared = self.vocabulary.shared("text", x)
            if draws is not None and chance:
                shared = hide_tokens(shared, draws, chance, self.vocabulary.hidden)
            return Tokens(self.embedding(shared), items.keep)
        if modality == "text" and draws is not None and chance:
            assert isinstance(tower, TextTransformer | ImportedTower)
            x = hide_tokens(x, draws, chance, tower.hidden)
        match tower:
            case ImportedTower():
                return tower(x, items.keep)
            case OwnTower():
                return tower(x.to(self.dtype) if x.is_floating_point() else x, items.keep)
            case AudioConformer():
                frames = tower.mel(x.to(self.exact_dtype), items.keep, lengths)
                counts = None if lengths is None else self._frame_counts(tower, items)
                frames = frames if draws is None else augment_frames(frames, draws, self.augment, counts)
                return tower(frames._replace(x=frames.x.to(self.dtype)), items.seeds(), counts)
            case TextTransformer():
                return tower(x, items.keep, items.seeds(), lengths)
        read = self.patches_read(items) if modality == "image" else None
        return tower(x, items.seeds(), None if read is None else to_device(read, x.device))

    def patches_read(self, items: Items) -> Int[Tensor, "n kept"] | None:
        """On the CPU, the patches that the image tower reads in this step; None: all."""
        chance = self.augment.patch_dropout
        if not chance or torch.compiler.is_compiling() or (seeds := items.facts.seeds()) is None:
            return None
        return patch_subset(seeds, self._patches(items), chance)

    def _patches(self, items: Items) -> int:
        """Of each picture."""
        tower = self.towers["image"]
        assert isinstance(tower, VisionTransformer)
        return math.prod(side // tower.patch_px for side in items.x.shape[-2:])

    def _frame_counts(self, tower: AudioConformer, items: Items) -> Int[Tensor, " n"]:
        """Of each sound the frames that the tower reads."""
        assert isinstance(tower.mel, LogMel | KaldiMel)
        counts, draws = tower.mel.frame_counts(items.facts.lengths), items.facts.draws
        return counts if draws is None else stretched(counts, draws, self.augment)

    def _real_tokens(self, modality: str, items: Items, tokens: Tokens) -> Bool[Tensor, "n time"]:
        """`tokens.keep` on the CPU: by the lengths of the items where the tower is ours or reads pictures, else asked
        for."""
        tower = self.towers[modality]
        if items.tokens is None:
            match tower:
                case AudioConformer():
                    return real_places(tokens.keep, tower.token_counts(self._frame_counts(tower, items)))
                case TextTransformer() | EmbeddedText():
                    return real_places(tokens.keep, items.facts.lengths)
                case VisionTransformer() | ImportedTower(modality="image"):
                    return torch.ones(tokens.keep.shape, dtype=torch.bool)
        return tokens.keep.cpu()

    def source(self, modality: str, items: Items) -> Segment:
        """The source segment of these items, some of its tokens hidden where the items carry draws."""
        tokens, seeds, chance = self.tokens(modality, items), items.seeds(), self.augment.tower_token_dropout
        read = self.patches_read(items) if modality == "image" and items.tokens is None else None
        if items.tokens is None:
            some = tokens.keep.shape[1] if read is None else tokens.keep.shape[1] - self._patches(items) + read.shape[1]
            self.read_counts.add_tower(modality, Tokens(tokens.x, tokens.keep[:, :some]))
        noise = None if seeds is None else DropoutKey(seeds[:, None], positions_of(tokens.keep))
        segment = self.enter(modality, Tokens(self.dropouts[modality](tokens.x, noise), tokens.keep))
        segment = segment._replace(causal=self.reads_causally(modality))
        if torch.compiler.is_compiling():
            return segment
        facts, pool = items.facts, (0, int(modality in self.pools))
        known = connected(self.connectors[modality], self._real_tokens(modality, items, tokens))
        segment = segment._replace(known=F.pad(known, pool, value=True))
        shown = known
        if read is not None:  # the places of a tower's first tokens, which are no patches, are always read
            ahead = known.shape[1] - self._patches(items)
            shown = (torch.arange(known.shape[1]) < ahead).repeat(len(known), 1).scatter(1, read + ahead, value=True)
        if (drawn := facts.seeds()) is not None and chance:
            shown = shown & keep_mask(drawn, known, chance)
        return segment if shown is known else segment._replace(shown=F.pad(shown, pool, value=True))

    def reads_causally(self, modality: str) -> bool:
        """Whether tokens of this source see those before them only, as a language model reads."""
        tower = self.towers[modality]
        return isinstance(tower, EmbeddedText) and tower.causal

    def enter(self, modality: str, tokens: Tokens) -> Segment:
        """The tower's tokens in the trunk's width, and the pool token; of a dual encoder the tower's one token."""
        x, keep = connect(self.connectors[modality], tokens)
        if modality not in self.pools:
            return Segment(Tokens(x, keep))
        pool = self.pools[modality].expand(x.shape[0], 1, -1)
        return Segment(Tokens(torch.cat([x, pool], 1), F.pad(keep, (0, 1), value=True)))

    def target(self, shared: Int[Tensor, "batch time"], keep: Bool[Tensor, "batch time"]) -> Segment:
        """The target segment of these ids of the vocabulary."""
        return Segment(Tokens(self.embedding(shared), keep), causal=True)

    def filled(
        self,
        modality: str,
        ids: Int[Tensor, "batch time"],
        hidden: Bool[Tensor, "batch time"],
        keep: Bool[Tensor, "batch time"],
    ) -> Segment:
        """The segment of local ids of which some are masked, seen from both sides: its place 1 + i is that of id i."""
        seen = self.vocabulary.shared(modality, ids).masked_fill(hidden, self.vocabulary.hidden)
        begun = F.pad(seen, (1, 0), value=self.vocabulary.begin(modality))
        return Segment(Tokens(self.embedding(begun), F.pad(keep, (1, 0), value=True)))

    @torch.no_grad()
    def written(self, modality: str, items: Items) -> Ids:
        """The local ids of these items as a target: stored ones, a text's own, or the codec's."""
        if items.written is not None:
            return items.written
        if modality == "text":
            return Ids(items.x, items.keep)
        raw = items.raw or Raw(items.x, items.keep)
        return self.codec(modality).encode(raw.x, raw.keep)

    def written_counts(self, modality: str, items: Items, written: Ids) -> Int[Tensor, " n"]:
        """How many ids each item is written as, on the CPU: asked for where only the codec knows."""
        facts = items.facts
        if facts.written is not None:
            return facts.written
        if modality == "text":
            return facts.lengths
        codec = self.codec(modality)
        if codec.form.length:
            return torch.full_like(facts.lengths, codec.form.length)
        if isinstance(codec, AudioAutoencoder) and items.raw is None:
            return codec.code_counts(facts.lengths)
        return written.keep.sum(1).cpu()

    def codec(self, modality: str) -> Codec:
        return cast(Codec, self.codecs[modality])

    def head(self, modality: str, states: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch dim"]:
        """The unit embedding at a source's last place: its pool token, or of a dual encoder its only one."""
        return F.normalize(self.heads[modality](states[:, -1]).to(self.exact_dtype), dim=-1)

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """What maps states to scores; the table of the input is that of the output, where the trunk ties them."""
        return self.embedding.weight if self.output is None else self.output.weight

    def logits(self, states: Float[Tensor, "*any width"]) -> Float[Tensor, "*any vocabulary"]:
        """Scores over the whole vocabulary."""
        return F.linear(states, self.embedding.weight) if self.output is None else self.output(states)


def _scales_as_vectors(state: dict[str, Any], prefix: str) -> None:
    """Scales and biases of pairs are vectors of one, which can be sharded; older checkpoints hold them as scalars."""
    for name in state:
        if name.removeprefix(prefix).startswith(("log_scales.", "biases.")) and not state[name].ndim:
            state[name] = state[name].reshape(1)


def build(
    cfg: config.Model,
    text_size: int,
    contrast: Sequence[config.Contrastive] = (),
    augment: config.Augment | None = None,
) -> UnifiedModel:
    """The module of a configuration, freshly initialised. `text_size`: how many ids the tokenizer has."""
    vocabulary = Vocabulary(text=text_size, image=cfg.codes("image"), audio=cfg.codes("audio"))
    towers = {name: make_tower(part, text_size, cfg) for name, part in cfg.towers.items()}
    trunk = UnifiedTransformer(cfg.trunk, cfg.dropout)
    codecs = {name: make_codec(part) for name, part in cfg.codecs.items()}
    known = [codecs[name] for name, part in cfg.codecs.items() if isinstance(part, config.KnownCodec)]
    model = UnifiedModel(
        towers, trunk, vocabulary, cfg.embed_dim, contrast, augment, cfg.connector_dropout, codecs, cfg.projectors
    )
    theirs = [tower for tower in towers.values() if isinstance(tower, ImportedTower | OwnTower)]
    init_weights(model, [*theirs, *known])
    for projector in (part for part in model.connectors.values() if isinstance(part, Projector)):
        projector.scale_start()
    adapt(model, cfg.adapters)
    number_dropouts(model)
    return model
