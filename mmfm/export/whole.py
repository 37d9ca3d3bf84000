"""A whole model of another library as a bundle of ours: a dual encoder of its two halves, each as its source has it.

What reads embeddings reads these as those of any model: `mmfm eval`, `compare`, `embed`, `mmfm.load`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from mmfm.config import MODALITIES, Data, Model, Run, TokenizerSpec, Tower, Trunk
from mmfm.config.serialization import write
from mmfm.data.batch import Items, Tokens
from mmfm.export.bundle import save_bundle
from mmfm.export.parity_report import ParityReport, compare, require_parity, run_encoder
from mmfm.inference.bundle import golden
from mmfm.inference.bundle.load import load_encoder
from mmfm.inference.bundle.without_paths import unpinned
from mmfm.inference.interface import Interface
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer, parse_reader
from mmfm.pretrained import Resolved
from mmfm.pretrained import build as build_encoder
from mmfm.pretrained.whole import WholeModel, resolve_whole


def import_whole(source: str, out: Path, modalities: Sequence[str], force: bool) -> ParityReport:
    """Writes the bundle `out`, whose unit embeddings are those of the source's halves. UserError as `import_source`."""
    whole = resolve_whole(source, modalities)
    found: list[ParityReport] = []

    def prove(folder: Path) -> Mapping[str, str]:
        reports = [_proof(source, name, half, folder) for name, half in whole.halves.items()]
        found.append(_together(reports))
        require_parity(found[0], "tell us about it")
        return {"proof.json": write(found[0]), "README.md": f"\n{found[0].line()}\n"}

    save_bundle(assembled(source, whole), out, force=force, source=source, prove=prove)
    return found[0]


def assembled(source: str, whole: WholeModel) -> Interface:
    """The halves as towers of one token each, a trunk without layers, and the source's scale and bias."""
    towers = {
        name: Tower(source=unpinned(source), pool="source", blueprint=half.blueprint)
        for name, half in whole.halves.items()
    }
    trunk = Trunk(width=whole.width, depth=0, heads=1, kv_heads=1, head_dim=2)
    model = Model(**{**dict.fromkeys(MODALITIES), **towers}, trunk=trunk, embed_dim=whole.width)  # pyright: ignore
    run = Run(name=name_of(source), model=model, data=Data(exact_decode=True), contrastive=whole.contrastive)
    tokenizer = _tokenizer(source, whole)
    with torch.random.fork_rng(devices=()):  # the table of a vocabulary that nothing reads: the same each time
        torch.manual_seed(0)
        core = build(model, tokenizer.size, whole.contrastive)
    for name, half in whole.halves.items():
        weights = {f"encoder.{key}": x for key, x in (half.weights or {}).items()}
        core.towers[name].load_state_dict(weights, strict=True, assign=True)
    with torch.no_grad():
        for pair in core.log_scales:
            core.log_scales[pair].fill_(whole.log_scale)
            core.biases[pair].fill_(whole.bias)
    return Interface(core.eval(), run, tokenizer).eval()


def name_of(source: str) -> str:
    """Of the run: what its source is called, as a plain name."""
    return re.sub(r"[^\w.-]+", "-", unpinned(source).partition(":")[2] or unpinned(source)).strip("-.") or "model"


def _tokenizer(source: str, whole: WholeModel) -> Tokenizer:
    """The source's own reads; nothing is written."""
    text = whole.halves["text"]
    words: TokenizerSpec | None = text.blueprint.words
    assert words is not None
    reader = parse_reader(text.tokenizer or "", words, f"{source}: its tokenizer")
    return replace(load_tokenizer("bytes"), reader=reader)


def _proof(source: str, modality: str, half: Resolved, folder: Path) -> ParityReport:
    """Unit embeddings of the source's own half and of the bundle as it is opened."""
    theirs, ours = build_encoder(half.blueprint).eval(), load_encoder(modality, folder, check=False)
    theirs.load_state_dict(half.weights or {}, strict=True, assign=True)
    items = golden.prepared(ours, golden.inputs(ours))

    def source_embeds(items: Items) -> Tokens:
        tokens = run_encoder(theirs, items)
        return Tokens(F.normalize(tokens.x, dim=-1), tokens.keep)

    def bundle_embeds(items: Items) -> Tokens:
        x = ours.embed(items)[:, None]
        return Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool))

    library = {"hf": "transformers"}.get(half.blueprint.library, half.blueprint.library)
    return compare(unpinned(source), modality, "Model", library, items, source_embeds, bundle_embeds)


def _together(reports: Sequence[ParityReport]) -> ParityReport:
    """The worst of the halves, and their sums."""
    first = reports[0]
    return replace(
        first,
        modality=" and ".join(one.modality for one in reports),
        inputs=sum(one.inputs for one in reports),
        tokens=sum(one.tokens for one in reports),
        difference=max(one.difference for one in reports),
        scale=min(one.scale for one in reports),
        padding=max(one.padding for one in reports),
        padding_invariant=all(one.padding_invariant for one in reports),
        longest=0,
        source_seconds=sum(one.source_seconds for one in reports),
        bundle_seconds=sum(one.bundle_seconds for one in reports),
    )
