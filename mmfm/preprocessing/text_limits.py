"""How many tokens of a text are read and written: training, evaluation and whatever reads a text ask `limits_of`.

The least of three bounds counts: what the data says (`Data.max_text_tokens`), the positions of the text tower, and the
room that the trunk's window leaves beside the rest of the sentence. Standard library only.
"""

from dataclasses import dataclass

from mmfm.config import AudioCodec, Conformer, Model, Run, TextTower, Tower, Vit, require
from mmfm.config.projectors import given_tokens
from mmfm.config.task import Task, parse_writing

WHY = {
    "data": "data.max_text_tokens",
    "tower": "the positions of the text tower",
    "window": "the room in Trunk.max_position_embeddings",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one text, in tokens without marks; 0: any number. `skip`: a longer one is refused, else its beginning is read.

    read: of what the text tower reads. written: of what is a target. by: which bound `read` is, one of `WHY`.
    """

    read: int = 0
    written: int = 0
    skip: bool = False
    by: str = "data"

    @property
    def remedy(self) -> str:
        """What helps against a text that is too long, besides cutting it."""
        return "cut it, or raise data.max_text_tokens" if self.by == "data" else "cut it"


NO_LIMITS = Limits()


def limits_of(run: Run) -> Limits:
    """What a run reads of a text. Never fails: `check_window` refuses what leaves no room."""
    tower, window = _context(run.model), _room(run)
    bounds = [(run.data.max_text_tokens, "data"), (tower, "tower"), (window, "window")]
    read, by = min([(size, name) for size, name in bounds if size], default=(0, "data"))
    written = min([size for size in (run.data.max_text_tokens, window) if size], default=0)
    text, tasks = run.model.text, sentences(run)
    if text is not None and text.words is None and any("text" in task.sources for task in tasks):
        written = read  # the same ids are read and written
    return Limits(read=read, written=written, skip=run.data.long_text == "skip", by=by)


def _context(model: Model) -> int:
    """Tokens of a text that the tower has positions for; 0: any number."""
    text = model.text
    if text is None:
        return 0
    if text.words is not None:
        return max(text.words.context - len(text.words.begin) - len(text.words.end), 1)
    return text.context if isinstance(text, TextTower) else 0


def sentences(run: Run) -> list[Task]:
    """What the trunk is to read: the tasks, and each modality of a contrast alone."""
    alone = dict.fromkeys(name for item in run.contrastive for name in item.pair)
    return [*(parse_writing(item.task) for item in run.generative), *(Task((name,), None) for name in alone)]


def _room(run: Run) -> int:
    """Tokens of each text that fit the trunk's window in all sentences; 0: any number."""
    if not run.model.trunk.max_position_embeddings:
        return 0
    held = [room_beside(run, task) for task in sentences(run) if task.mentions("text")]
    return max(1, min(held, default=run.model.trunk.max_position_embeddings - 1))


def room_beside(run: Run, task: Task) -> int:
    """Tokens that the window leaves for each text of a task, its mark or pool not counted.

    Sounds count as long as they may be, unless these leave nothing: most are shorter.
    """
    window, texts = run.model.trunk.max_position_embeddings, task.mentions("text")
    full, least = ((window - taken(run, task, sounds)) // texts - 1 for sounds in (True, False))
    return full if full > 0 else least


def taken(run: Run, task: Task, sounds: bool = True) -> int:
    """Tokens of a sentence that are not of its texts. What an imported encoder gives is not known before it runs."""
    sources = [name for name in task.sources if name != "text" and (sounds or name != "audio")]
    target = task.target if task.target not in (None, "text") else None
    written = 0 if target is None or (target == "audio" and not sounds) else 1 + _codes(run, target)
    return sum(1 + _tokens(run, name) for name in sources) + written


def _seconds(run: Run) -> float:
    return min(run.data.crop_seconds or run.data.max_seconds, run.data.max_seconds)


def _tokens(run: Run, name: str) -> int:
    """That the trunk is given of one item, at the most."""
    tower = getattr(run.model, name)
    prefix = tower.prefix if isinstance(tower, Vit) else 0
    return int(given_tokens(run.model.projectors, name, _of_tower(run, tower), prefix))


def _of_tower(run: Run, tower: object) -> int:
    """Tokens of one item, at the most; 0: not known before it runs."""
    if isinstance(tower, Vit):
        return tower.prefix + tower.tokens
    if isinstance(tower, Conformer):
        hop = round(tower.mel.hop_ms * tower.mel.rate_hz / 1000)
        frames = -(-round(_seconds(run) * tower.mel.rate_hz) // hop)
        return {"conv": -(-frames // 4), "stack": max(frames // 2, 1), "none": frames}[tower.stem]
    return 1 if isinstance(tower, Tower) and tower.pool != "none" else 0


def _codes(run: Run, name: str) -> int:
    """That a codec writes of one item, at the most."""
    codec = run.model.codecs.get(name)
    if isinstance(codec, AudioCodec):
        hop = round(codec.mel.hop_ms * codec.mel.rate_hz / 1000)
        return -(-round(_seconds(run) * codec.mel.rate_hz) // (hop * codec.frame_stack)) * codec.num_codebooks
    return 0 if codec is None else codec.length


def check_window(run: Run) -> None:
    """UserError where a sentence that is to be learned cannot fit the trunk's window, however short its texts."""
    window = run.model.trunk.max_position_embeddings
    for task in sentences(run) if window else ():
        least = taken(run, task) + 2 * task.mentions("text")
        told = f"{task} takes up to {least} tokens and Trunk.max_position_embeddings={window} holds no more than that"
        long = "audio" in (*task.sources, task.target)
        remedy = (
            "lower data.max_seconds, or set data.crop_seconds" if long else "give smaller pictures, or leave it out"
        )
        require(least <= window, f"{told}; {remedy}")
