"""torchaudio's Conformer and transformers' w2v-BERT 2.0 (arXiv 2312.05187), as our `Conformer`.

w2v-BERT's own frames are `Mel(recipe="kaldi")`. torchaudio's Conformer takes whatever frames it was trained on, as wide
as itself: our `mel` has as many bins, and the tower is called with other frames all the same.
"""

import json

from mmfm.config import AudioPreprocess, Conformer, Mel
from mmfm.models.mappings.mapping import Foreign, Layout, Part, Weights, allow
from mmfm.models.mappings.settings import activation_of, hf_config


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


def pointwise(part: Part, weights: Weights, foreign: Foreign) -> Weights:
    """Convolutions over one frame are matrices."""
    ends = (".conv.inner.weight", ".conv.out.weight")
    return {name: x.squeeze(-1) if name.endswith(ends) and x.ndim == 3 else x for name, x in weights.items()}


CONFORMER = Layout(
    library="torchaudio",
    modality="audio",
    kinds=("Conformer",),
    part=torchaudio_conformer,
    fit=pointwise,
    outside=(r".*\.num_batches_tracked$",),
    renames=(
        (r"^conformer_layers\.", "blocks."),
        (r"\.ffn1\.sequential\.0\.", ".norms.0."),
        (r"\.self_attn_layer_norm\.", ".norms.1."),
        (r"\.conv_module\.layer_norm\.", ".norms.2."),
        (r"\.ffn2\.sequential\.0\.", ".norms.3."),
        (r"\.final_layer_norm\.", ".norms.4."),
        (r"\.ffn1\.sequential\.", ".before."),
        (r"\.ffn2\.sequential\.", ".after."),
        (r"\.(before|after)\.1\.", r".\1.fc1."),
        (r"\.(before|after)\.4\.", r".\1.fc2."),
        (r"\.self_attn\.in_proj_", ".attn.qkv."),
        (r"\.self_attn\.out_proj\.", ".attn.proj."),
        (r"\.conv_module\.sequential\.0\.", ".conv.inner."),
        (r"\.conv_module\.sequential\.2\.", ".conv.depthwise."),
        (r"\.conv_module\.sequential\.3\.", ".conv.norm."),
        (r"\.conv_module\.sequential\.5\.", ".conv.out."),
    ),
)
W2V_BERT = Layout(
    library="hf",
    modality="audio",
    kinds=("wav2vec2-bert",),
    part=w2v_bert,
    fit=pointwise,
    scopes=("wav2vec2_bert.",),
    outside=(r"masked_spec_embed$|lm_head\.|classifier\.|projector\.",),
    renames=(
        (r"^feature_projection\.layer_norm\.", "subsample.norm."),
        (r"^feature_projection\.projection\.", "subsample.out."),
        (r"^encoder\.layers\.", "blocks."),
        (r"\.ffn1_layer_norm\.", ".norms.0."),
        (r"\.self_attn_layer_norm\.", ".norms.1."),
        (r"\.conv_module\.layer_norm\.", ".norms.2."),
        (r"\.ffn2_layer_norm\.", ".norms.3."),
        (r"\.final_layer_norm\.", ".norms.4."),
        (r"\.ffn1\.", ".before."),
        (r"\.ffn2\.", ".after."),
        (r"\.intermediate_dense\.", ".fc1."),
        (r"\.output_dense\.", ".fc2."),
        (r"\.self_attn\.linear_(q|k|v)\.", r".attn.\1."),
        (r"\.self_attn\.linear_out\.", ".attn.proj."),
        (r"\.self_attn\.distance_embedding\.", ".attn.relative.table."),
        (r"\.conv_module\.pointwise_conv1\.", ".conv.inner."),
        (r"\.conv_module\.depthwise_conv\.", ".conv.depthwise."),
        (r"\.conv_module\.depthwise_layer_norm\.", ".conv.norm."),
        (r"\.conv_module\.pointwise_conv2\.", ".conv.out."),
    ),
)
LAYOUTS = (CONFORMER, W2V_BERT)
