"""Where samples come from, and how they are drawn, decoded and changed."""

from dataclasses import dataclass, field
from typing import Literal

from mmfm.config.base import Checked, positive, require
from mmfm.config.chat import MESSAGES
from mmfm.config.modalities import require_known


@dataclass(frozen=True, kw_only=True)
class Augment(Checked):
    """Random changes to training input, each a function of the sample's position in the stream. Zero switches off."""

    rotate_deg: float = 0.0
    scale: float = 0.0  # 0.1: from 1/1.1 to 1.1 times the size, each axis on its own
    shear: float = 0.0
    translate: float = 0.0  # as a fraction of the shorter side
    elastic: float = 0.0  # smooth random displacement, as a fraction of the shorter side
    brightness: float = 0.0
    # 0.1: a random part of 0.9 to 1 of the picture's area, 3:4 to 4:3 as wide as high (torchvision's)
    crop: float = 0.0
    horizontal_flip: bool = False  # left and right are exchanged, half of the time
    cutout: float = 0.0  # longest side of a blanked rectangle, as a fraction of the picture's width and height
    source_token_dropout: float = 0.0  # probability that a token of a text that is read is masked
    # probability that in training the trunk does not see a token of a tower (arXiv 2212.00794)
    tower_token_dropout: float = 0.0
    target_token_dropout: float = 0.0  # the same of a text that is to be continued, so that sources must be read
    patch_dropout: float = 0.0  # part of a picture's patches that the image tower does not read in training (FLIP)
    speed: float = 0.0  # 0.1: the spectrogram is stretched in time by 1/1.1 to 1.1
    vtlp: float = 0.0  # 0.1: its frequency axis is stretched by 1/1.1 to 1.1 (vocal tract length perturbation)
    time_mask: int = 0  # longest masked run of 10 ms frames (SpecAugment)
    freq_mask: int = 0
    noise: float = 0.0  # standard deviation on the normalised spectrogram

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 0, f"Augment.{name}={value} must not be negative")
        for name in ("crop", "cutout", "source_token_dropout", "tower_token_dropout", "target_token_dropout"):
            require(getattr(self, name) <= 1, f"Augment.{name}={getattr(self, name)} is a fraction: at most 1")
        require(self.patch_dropout < 1, f"Augment.patch_dropout={self.patch_dropout} must be below 1")


@dataclass(frozen=True, kw_only=True)
class Text(Checked):
    """Where a source's text may lie, and how often this place is drawn among those that a sample has."""

    field: str  # "txt", or the path of a value in the .json: "caption", "captions.fr", "captions.*" for any in there
    weight: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "weight")
        require(bool(self.field), 'Text.field is empty; name "txt" or a field of the .json, such as "captions.fr"')


@dataclass(frozen=True, kw_only=True)
class Source(Checked):
    """Shards that provide the same modalities. Of every sum-of-shares samples (or batches), `share` come from here."""

    shards: str  # a folder, a tar, a pattern such as data/train/image-{000000..000007}.tar, or the same as a URL
    modalities: tuple[str, ...]  # ("messages",): conversations, with the pictures and sounds that each mentions
    weight: int = 1
    name: str = ""  # in logs and reports; empty: `shards`
    texts: tuple[Text, ...] = ()  # empty: the .txt, else "caption" or "text" of the .json
    # a second text, behind the first one ("text>text"); of two lists as long as each other, such as
    # texts=(Text(field="questions"),) and targets=(Text(field="answers"),), the same place is drawn
    targets: tuple[Text, ...] = ()
    num_shots: int = 0  # so many other samples of this source come before each ("image,text,image>text")

    def __post_init__(self) -> None:
        positive(self, "weight")
        for name in self.modalities:
            if name != MESSAGES:
                require_known(name, "Source.modalities")
        told = f"Source.modalities={self.modalities}: a conversation mentions what it holds; give ('messages',) alone"
        require(MESSAGES not in self.modalities or len(self.modalities) == 1, told)
        told = f"Source.num_shots={self.num_shots} is of no conversations; write the examples into their messages"
        require(MESSAGES not in self.modalities or self.num_shots == 0, told)
        told = "Source.texts and targets are of no conversations, which are their messages; leave them out"
        require(MESSAGES not in self.modalities or not (self.texts or self.targets), told)
        require(self.num_shots >= 0, f"Source.num_shots={self.num_shots} must not be negative")
        told = "Source.targets are texts, which the source does not provide; add 'text' to provides"
        require(not self.targets or "text" in self.modalities, told)

    @property
    def label(self) -> str:
        return self.name or self.shards


@dataclass(frozen=True, kw_only=True)
class RemoteCache(Checked):
    """Where shards with a URL are kept on this machine while they are in use."""

    folder: str = "~/.cache/mmfm/shards"
    # the least recently used shards are removed beyond it; those of data.shuffle_buffer must fit
    limit_gb: float = 50.0
    tries: int = 5  # at one request, before an error of the network stops the run
    timeout_s: float = 30.0  # without a byte

    def __post_init__(self) -> None:
        positive(self, "limit_gb", "tries", "timeout_s")


@dataclass(frozen=True, kw_only=True)
class Data(Checked):
    train: tuple[Source, ...] = ()
    val: str = ""  # shards scored during training; empty: none
    batch_size: int = 128  # samples per step, over all ranks
    # of a step's samples together, over all ranks, as the index counts them; a step then takes as many as fit, and
    # at the most `batch_size`; one that alone has more is a step of its own. 0: no budget
    tokens_per_batch: int = 0
    mix_by: Literal["sample", "batch"] = "sample"  # "batch": all samples of a step come from one source
    shuffle_buffer: int = 65_536  # samples shuffled together, out of as many shards as hold them
    balance_by_length: bool = False  # deal the samples of a step to ranks by tokens, so that none waits for another
    num_workers: int = 1  # loader processes per rank
    cache_mb: int = 0  # decoded samples that each worker may keep; worth it where all of a set fits
    max_seconds: float = 30.0  # a longer clip is an error, not a silent cut
    crop_seconds: float = 0.0  # of a longer clip only this much is read, a random part in training; 0: all of it
    # of a longer text `long_text` says what becomes; text tower and trunk may take less than that, and then that
    # counts; 0: as many as they take
    max_text_tokens: int = 2_048
    # "truncate": only its first tokens are read and learned; "skip": it is a sample that cannot be used. Both are
    # counted
    long_text: Literal["truncate", "skip"] = "truncate"
    exact_decode: bool = False  # JPEG in full, then reduced; else decoded at a half, quarter or eighth: faster
    max_bad_fraction: float = 0.01  # of a source's last 10,000 samples, or four steps; if more are bad the run stops
    remote_cache: RemoteCache = field(default_factory=RemoteCache)
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        positive(self, "batch_size", "shuffle_buffer", "max_seconds")
        require(self.num_workers >= 0, f"Data.num_workers={self.num_workers} must not be negative")
        require(
            self.tokens_per_batch >= 0,
            f"Data.tokens_per_batch={self.tokens_per_batch} must not be negative; 0: no budget",
        )
        require(self.cache_mb >= 0, f"Data.cache_mb={self.cache_mb} must not be negative")
        require(self.max_text_tokens >= 0, f"Data.max_text_tokens={self.max_text_tokens} must not be negative")
        require(self.crop_seconds >= 0, f"Data.crop_seconds={self.crop_seconds} must not be negative")
        require(
            0 <= self.max_bad_fraction <= 1,
            f"Data.max_bad_fraction={self.max_bad_fraction} is a fraction: between 0 and 1",
        )
        labels = [source.label for source in self.train]
        twice = next((label for label in labels if labels.count(label) > 1), "")
        require(not twice, f"Data.train: two sources are called {twice!r}; give each a name of its own")
        total = sum(source.weight for source in self.train)
        require(
            not self.train or self.mix_by == "batch" or self.batch_size % total == 0,
            f"Data.batch_size={self.batch_size} must be a multiple of the sources' shares together ({total})",
        )

    @property
    def of_a_step(self) -> str:
        """How much a step reads, for people."""
        if not self.tokens_per_batch:
            return f"{self.batch_size:,} samples"
        return f"{self.tokens_per_batch:,} tokens, at most {self.batch_size:,} samples"
