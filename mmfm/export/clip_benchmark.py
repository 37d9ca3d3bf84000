"""CLIP_benchmark's own command line with our models known to it: `python -m mmfm.export.clip_benchmark eval ...`.

--model_type mmfm --model runs/NAME     a run, a checkpoint or a bundle
--model local-dir:OUT --pretrained none     a folder of `mmfm export --to open_clip`
"""

from typing import Any

import torch
from torch import Tensor

from mmfm.compat.clip_benchmark import choose_accuracy, main, register_loader
from mmfm.export import open_clip
from mmfm.export.open_source import open_model

NAME = "mmfm"


def load(model_name: str, pretrained: str, cache_dir: str | None, device: str) -> tuple[Any, Any, Any]:
    """Model, transform and tokenizer, as CLIP_benchmark asks for them; `pretrained` has no meaning here."""
    model = open_model(model_name).to(device)
    return model, model.transform, model.tokenize


def accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """As theirs, which numpy 2.4 and later ends with a TypeError (version 1.6.2, issue 147 of its project)."""
    hit = output.topk(max(topk), 1)[1] == target[:, None]
    return [hit[:, :k].any(1).float().mean().item() for k in topk]


def register() -> None:
    """From now on --model_type mmfm is known to it, and folders of ours to open_clip."""
    open_clip.register()
    register_loader(NAME, load)
    choose_accuracy(accuracy)


if __name__ == "__main__":
    torch.set_num_threads(1)
    register()
    main()
