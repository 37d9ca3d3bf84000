"""torchaudio's Conformer and transformers' w2v-BERT 2.0 (arXiv 2312.05187), as our `Conformer`.

w2v-BERT's own frames are `Mel(recipe="kaldi")`. torchaudio's Conformer takes whatever frames it was trained on, as wide
as itself: our `mel` has as many bins, and the tower is called with other frames all the same.
"""

import json

from mmfm.config import AudioPreprocess, Conformer, Mel
from mmfm.models.mappings.mapping import Foreign, Layout, activation_of, allow, hf_config
from mmfm.models.mappings.table import Table


def torchaudio_conformer(foreign: Foreign) -> Conformer:
    cfg, name = foreign.architecture, "torchaudio's Conformer"
    allow(name, not cfg.get("use_group_norm"), "a group norm over time, which sees the padding")
    allow(name, not cfg.get("convolution_first"), "the convolution before the attention")
    return Conformer(
        mel=Mel(bins=cfg["input_dim"]),
        stem="none",
        width=cfg["input_dim"],
        depth=cfg["num_layers"],
        heads=cfg["num_heads"],
        hidden=cfg["ffn_dim"],
        activation="silu",
        kernel=cfg["depthwise_conv_kernel_size"],
        conv_norm="fixed",
        position="none",
    )


def frames_of(foreign: Foreign, bins: int, name: str) -> Mel:
    """The frames of transformers' extractor; UserError for one with other settings."""
    said = json.loads(foreign.contract.extractor or "{}") if isinstance(foreign.contract, AudioPreprocess) else {}
    kind = "SeamlessM4TFeatureExtractor"
    ours = {"feature_extractor_type": kind, "sampling_rate": 16_000, "num_mel_bins": bins, "stride": 2}
    other = {key: value for key, value in said.items() if key in ours and value != ours[key]}
    allow(name, not other, f"frames made with {other}")
    return Mel(bins=bins, high_hz=8_000.0, recipe="kaldi")


def w2v_bert(foreign: Foreign) -> Conformer:
    cfg, name = hf_config(foreign), "this w2v-BERT"
    allow(
        name, cfg["position_embeddings_type"] in ("relative_key", None), f"{cfg['position_embeddings_type']} positions"
    )
    allow(name, not cfg["add_adapter"], "an adapter")
    activation = activation_of(cfg["hidden_act"], name)
    allow(name, activation == "silu", f"convolutions with {activation}")
    relative = cfg["position_embeddings_type"] == "relative_key"
    bins, odd = divmod(cfg["feature_projection_input_dim"], 2)
    allow(name, not odd, f"frames of {2 * bins + 1} numbers, which is no pair of frames")
    return Conformer(
        mel=frames_of(foreign, bins, name),
        stem="stack",
        width=cfg["hidden_size"],
        depth=cfg["num_hidden_layers"],
        heads=cfg["num_attention_heads"],
        hidden=cfg["intermediate_size"],
        activation=activation,
        eps=cfg["layer_norm_eps"],
        kernel=cfg["conv_depthwise_kernel_size"],
        causal=True,
        conv_bias=False,
        position="relative" if relative else "none",
        left=cfg["left_max_position_embeddings"] if relative else 0,
        right=cfg["right_max_position_embeddings"] if relative else 0,
    )


def names(at: str, *rows: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Rows of a block, and of the library's, whose blocks lie at `at`."""
    return tuple((f"blocks.*.{ours}", f"{at}.*.{theirs}") for ours, theirs in rows)


CONFORMER = Layout(
    library="torchaudio",
    modality="audio",
    kinds=("Conformer",),
    part=torchaudio_conformer,
    outside=r".*\.num_batches_tracked$",
    table=Table(
        *names(
            "conformer_layers",
            ("norms.0", "ffn1.sequential.0"),
            ("before.fc1", "ffn1.sequential.1"),
            ("before.fc2", "ffn1.sequential.4"),
            ("norms.1", "self_attn_layer_norm"),
            ("attn.qkv", "self_attn.in_proj_"),
            ("attn.proj", "self_attn.out_proj"),
            ("norms.2", "conv_module.layer_norm"),
            ("conv.inner ~", "conv_module.sequential.0"),
            ("conv.depthwise", "conv_module.sequential.2"),
            ("conv.norm", "conv_module.sequential.3"),
            ("conv.out ~", "conv_module.sequential.5"),
            ("norms.3", "ffn2.sequential.0"),
            ("after.fc1", "ffn2.sequential.1"),
            ("after.fc2", "ffn2.sequential.4"),
            ("norms.4", "final_layer_norm"),
        )
    ),
)
W2V_BERT = Layout(
    library="hf",
    modality="audio",
    kinds=("wav2vec2-bert",),
    part=w2v_bert,
    scopes=("wav2vec2_bert.",),
    outside=r"masked_spec_embed$|lm_head\.|classifier\.|projector\.",
    table=Table(
        ("subsample.norm", "feature_projection.layer_norm"),
        ("subsample.out", "feature_projection.projection"),
        *names(
            "encoder.layers",
            ("norms.0", "ffn1_layer_norm"),
            ("before.fc1", "ffn1.intermediate_dense"),
            ("before.fc2", "ffn1.output_dense"),
            ("norms.1", "self_attn_layer_norm"),
            ("attn.qkv", "self_attn.linear_{q,k,v}"),
            ("attn.proj", "self_attn.linear_out"),
            ("attn.relative.table", "self_attn.distance_embedding"),
            ("norms.2", "conv_module.layer_norm"),
            ("conv.inner ~", "conv_module.pointwise_conv1"),
            ("conv.depthwise", "conv_module.depthwise_conv"),
            ("conv.norm", "conv_module.depthwise_layer_norm"),
            ("conv.out ~", "conv_module.pointwise_conv2"),
            ("norms.3", "ffn2_layer_norm"),
            ("after.fc1", "ffn2.intermediate_dense"),
            ("after.fc2", "ffn2.output_dense"),
            ("norms.4", "final_layer_norm"),
        ),
    ),
)
LAYOUTS = (CONFORMER, W2V_BERT)
