"""open_clip's own training loader over WebDataset shards, and its tokenizer as a tokenizer.json.

open_clip 3.3 with webdataset 1.0.2 ends at the first shard's end: webdataset puts a marker there, which open_clip takes
for a file (KeyError: 'fname'; webdataset issue 384, open_clip issue 935). `eof_value=None` leaves the marker out. Its
shuffle buffer of 5,000 samples would hold all of a small set; here it is an argument. Nothing else is changed. Its
trainer's module imports pandas, which has to be installed beside it.
"""

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import webdataset
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import AugmentationCfg, image_transform
from open_clip_train import data
from webdataset.tariterators import tar_file_expander

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def loader(
    shards: str, *, samples: int, batch: int, workers: int, side_px: int, crop: float, buffer: int = 256
) -> webdataset.WebLoader:
    """Batches of (float images [batch, 3, side, side], ids [batch, 77]), over and over, without resampling."""
    webdataset.utils.enforce_security = False  # else, as mmfm asks for it, it opens no file of this machine
    data.tar_file_expander = partial(tar_file_expander, eof_value=None)
    data._SAMPLE_SHUFFLE_SIZE, data._SAMPLE_SHUFFLE_INITIAL = buffer, buffer // 2
    options = SimpleNamespace(
        train_data=shards,
        train_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=batch,
        workers=workers,
        world_size=1,
    )
    transform = image_transform(side_px, is_train=True, aug_cfg=AugmentationCfg(scale=(1 - crop, 1.0)))
    return data.get_wds_dataset(options, transform, is_train=True, tokenizer=SimpleTokenizer()).dataloader


def tokenizer_json() -> str:
    """CLIP's byte-pair encoding without its marks, for `mmfm`: the same ids for text that is clean already."""
    clip = SimpleTokenizer()
    model = {
        "type": "BPE",
        "vocab": clip.encoder,
        "merges": [list(pair) for pair in clip.bpe_ranks],
        "end_of_word_suffix": "</w>",
        "continuing_subword_prefix": "",
        "fuse_unk": False,
        "byte_fallback": False,
    }
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tree: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, levels]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }
    return json.dumps(tree)
