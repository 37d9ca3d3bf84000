"""Small encoders of other libraries, in folders as these libraries write them, with weights away from their starts."""

import json
from pathlib import Path

import open_clip
import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn

BLOCKS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 8} | BLOCKS
CONVS = {
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
} | BLOCKS
LAYERED = CONVS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
VOCABULARY = {
    token: i for i, token in enumerate((*MARKS, *LETTERS, *(f"##{letter}" for letter in LETTERS), ".", "the"))
}
WORDS = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def moved(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every vector away from its neutral start: norms of ones would hide that two are exchanged."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def hf_folder(folder: Path, config: hf.PreTrainedConfig, *more: object) -> nn.Module:
    """transformers' own model of a configuration, saved as it saves; and its tokenizer or extractor beside it."""
    torch.manual_seed(0)
    model = moved(hf.AutoModel.from_config(config))
    for part in (model, *more):
        part.save_pretrained(folder)
    return model


def wordpieces(limit: int = 40) -> hf.BertTokenizer:
    tokenizer = hf.BertTokenizer(vocab=VOCABULARY)
    tokenizer.model_max_length = limit
    return tokenizer


def timm_folder(folder: Path, name: str, **args: object) -> nn.Module:
    torch.manual_seed(0)
    model = moved(timm.create_model(name, num_classes=0, **args))
    keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "fixed_input_size", "first_conv", "classifier")
    size = args.get("img_size", model.pretrained_cfg["input_size"][-1])
    said = {key: model.pretrained_cfg[key] for key in keys if key in model.pretrained_cfg}
    said |= {"input_size": [3, size, size]}
    config = {"architecture": name, "num_classes": 0, "model_args": args, "pretrained_cfg": said}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def open_clip_folder(folder: Path, config: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash"}
    said = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    arguments = {name: value for name, value in config.items() if name != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = moved(kind(**arguments))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model
