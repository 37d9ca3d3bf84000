"""Distillation: a part of the model learns from another model, which is at rest and in none of its checkpoints."""

from dataclasses import dataclass
from typing import Literal

from mmfm.config.base import Checked, positive, require
from mmfm.config.modalities import require_known


@dataclass(frozen=True, kw_only=True)
class Distil(Checked):
    """Learn from a teacher: where it places the items of a modality, or which token it expects next.

    Each of the three is a weight, and 0 leaves it out. The teacher is the folder of a bundle or of a run, and is read
    only to train: its checkpoints hold its sha256, and not its weights.
    """

    modality: str  # whose items teacher and student both read
    teacher: str  # the folder of a bundle or of a run
    # embeddings near the teacher's vectors by cosine (arXiv 1412.6550); Model.embed_dim must be as wide as these
    features: float = 0.0
    # of each item the similarities to the others of the batch, as a distribution, like the teacher's (arXiv 1904.05068,
    # 2307.12732)
    similarities: float = 0.0
    similarity_temperature: float = 0.05  # of those distributions
    # "batch": the mean over all items of a step is taken from the teacher's vectors and, for similarities, from the
    # student's (arXiv 1702.01417, without its principal components). Vectors of an encoder share a direction, and a
    # student that gives every item that one direction has most of what the loss asks for
    center: Literal["none", "batch"] = "none"
    # next tokens as likely as to a language model of the same tokenizer (arXiv 1503.02531), in ">text" and in chat
    logits: float = 0.0
    temperature: float = 1.0  # of those logits; losses and gradients are scaled by its square
    weight: float = 1.0  # of all of it
    feature_cache_dir: str = ""  # where the teacher's vectors are kept, by content, so that each is made once
    sha256: str = ""  # of the teacher's weights; written by training; leave it out

    def __post_init__(self) -> None:
        require_known(self.modality, "Distil.modality")
        require(bool(self.teacher), "Distil.teacher is empty; give the folder of a bundle or of a run")
        positive(self, "temperature", "similarity_temperature")
        for name in ("weight", "features", "similarities", "logits"):
            require(getattr(self, name) >= 0, f"Distil.{name}={getattr(self, name)} must not be negative")
        told = f"Distil of {self.modality} has nothing to learn; set features, similarities or logits above 0"
        require(self.embeds or bool(self.logits), told)
        told = (
            f"Distil.logits={self.logits} of {self.modality}: only texts are written by a language model; set it to 0"
        )
        require(not self.logits or self.modality == "text", told)
        told = "Distil.logits is of a language model, and features and similarities of an encoder; list two of them"
        require(not (self.embeds and self.logits), told)

    @property
    def embeds(self) -> bool:
        """Whether it compares embeddings."""
        return bool(self.features or self.similarities)

    @property
    def name(self) -> str:
        return f"distil {'>text' if self.logits else self.modality}"
