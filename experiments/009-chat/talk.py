"""What one run answers about one picture, the first question spoken: talk.json, picture.jpg and question.flac.

    PYTHONPATH=. python experiments/009-chat/talk.py runs/described-0 data/scenes

The picture is the first of test-style about which `side` is asked, two emoji: no training picture has any. Its first
question is spoken by a voice of test, the others are written; each is asked alone, as it was learned, and all of them
once more as the turns of one conversation, which was not.
"""

import json
import sys
import tarfile
from pathlib import Path

import mmfm
from mmfm.datasets import spoken_questions
from mmfm.datasets.scene_questions import Question

HERE = Path(__file__).parent
SPOKEN = "How many things are in the picture?"
WRITTEN = (
    "What is on the left?",
    "What is on the right?",
    "Is there an animal in the picture?",
    "Describe the picture.",
)


def picture(scenes: Path) -> bytes:
    """Of the first question of its kind."""
    with tarfile.open(scenes / "test-style" / "scene-000000.tar") as tar:
        members = {member.name: member for member in tar}
        for name in (name for name in members if name.endswith(".json")):
            if json.load(tar.extractfile(members[name]))["kind"] == "side":  # type: ignore[arg-type]
                return tar.extractfile(members[name.replace(".json", ".0.jpg")]).read()  # type: ignore[union-attr]
    raise SystemExit(f"{scenes} has no question about sides")


def main(run: str, scenes: str) -> None:
    (HERE / "picture.jpg").write_bytes(picture(Path(scenes)))
    question = Question(kind="count", text=SPOKEN, answers=(), choices=(), new=False, scene=None)
    (said,) = spoken_questions.plan("test", [question], seed=0)
    (HERE / "question.flac").write_bytes(next(spoken_questions.speak([said])))
    model = mmfm.load(run)
    image = {"type": "image", "image": HERE / "picture.jpg"}
    first = [image, {"type": "audio", "audio": HERE / "question.flac"}]
    turns, messages = [], list[dict[str, object]]()
    for asked in (None, *WRITTEN):
        alone = first if asked is None else [image, {"type": "text", "text": asked}]
        answer = model.chat([{"role": "user", "content": alone}])
        messages.append({"role": "user", "content": asked or first})
        later = model.chat(messages)
        messages.append({"role": "assistant", "content": later})
        turns.append({"asked": asked or SPOKEN, "spoken": asked is None, "answered": answer, "as_a_turn": later})
    told = {"run": Path(run).name, "voice": said.voice, "turns": turns}
    (HERE / "talk.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
