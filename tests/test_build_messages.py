"""Conversations of other people's files: every form comes out as the one of mmfm, and what does not fit is refused."""

import base64
import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from test_build import by_webdataset, everything, left_out
from toys import toy_config

from mmfm.config import Chat, ChatTemplate, Data, Run, Source, UserError
from mmfm.data.stream import TrainStream
from mmfm.data.writer import Item
from mmfm.datasets.build import build
from mmfm.datasets.build_rows import Columns
from mmfm.preprocessing import CODES
from mmfm.preprocessing.chat import Message, Part, parse_messages
from mmfm.preprocessing.tokenizer import load_tokenizer

PLAIN = ChatTemplate(user=("User: ", "\n"), assistant=("Bot: ", "\n"))
SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat is it, "}, {"type": "audio"},
                                 {"type": "text", "text": "?"}]},
    {"role": "assistant", "content": "An owl."},
    {"role": "user", "content": [{"type": "text", "text": "And this? "}, {"type": "image"}]},
    {"role": "assistant", "content": "A cow."},
]  # fmt: skip


@pytest.fixture
def media(tmp_path: Path, encode_image: Callable[..., bytes], encode_audio: Callable[..., bytes], sine: Any) -> Path:
    """Two pictures and a sound, m/owl.png, m/cow.jpg and m/who.wav."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "owl.png").write_bytes(encode_image(np.full((4, 4, 3), 9, np.uint8)))
    (tmp_path / "m" / "cow.jpg").write_bytes(encode_image(np.full((4, 4, 3), 99, np.uint8), "JPEG"))
    (tmp_path / "m" / "who.wav").write_bytes(encode_audio(sine(200.0, 0.05)))
    return tmp_path


def files(media: Path) -> dict[str, bytes]:
    """As the conversation SAID mentions them."""
    names = {"0.png": "owl.png", "1.wav": "who.wav", "2.jpg": "cow.jpg"}
    return {part: (media / "m" / name).read_bytes() for part, name in names.items()}


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def built(source: Any, out: Path, **options: Any) -> dict[str, dict[str, bytes]]:
    build(source, out, progress=False, **options)
    return by_webdataset(out)


def only(source: Any, out: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, bytes]]:
    """The one sample: its messages, what else its .json says, and its files."""
    (sample,) = built(source, out, **options).values()
    about = json.loads(sample.pop("json"))
    return about.pop("messages"), about, sample


def data_url(kind: str, path: Path) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def openai(media: Path) -> dict[str, Any]:
    """Its own documentation's forms: an image_url object, an input_audio, a developer's turn."""
    sound = base64.b64encode((media / "m" / "who.wav").read_bytes()).decode()
    first = [
        {"type": "image_url", "image_url": {"url": data_url("image/png", media / "m" / "owl.png"), "detail": "low"}},
        {"type": "text", "text": "\nWhat is it, "},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "text", "text": "?"},
    ]
    second = [{"type": "text", "text": "And this? "}, {"type": "image_url", "image_url": {"url": "m/cow.jpg"}}]
    turns = zip(("developer", "user", "assistant", "user", "assistant"), content(first, second), strict=True)
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def content(first: Any, second: Any) -> tuple[Any, ...]:
    return "Be brief.", first, "An owl.", second, "A cow."


MARKED = content("<image>\nWhat is it, <audio>?", "And this? <image>")
HELD = {"images": ["m/owl.png", "m/cow.jpg"], "audios": ["m/who.wav"]}


def swift() -> dict[str, Any]:
    turns = zip(("system", "user", "assistant", "user", "assistant"), MARKED, strict=True)
    return {"messages": [{"role": role, "content": text} for role, text in turns], **HELD}


def llava(roles: tuple[str, str] = ("human", "gpt")) -> dict[str, Any]:
    turns = zip((*roles, *roles), MARKED[1:], strict=True)
    talk = [{"from": role, "value": text} for role, text in turns]
    return {"system": "Be brief.", "conversations": talk, "image": HELD["images"], "audio": "m/who.wav"}


def transformers() -> dict[str, Any]:
    """As its chat templates and TRL have them: parts without a file, and files in a column."""
    return {"messages": SAID, **HELD}


def in_parts() -> dict[str, Any]:
    """As Qwen's have them: each part with its own file."""
    names = iter(("m/owl.png", "m/who.wav", "m/cow.jpg"))
    turns = json.loads(json.dumps(SAID))
    for piece in (piece for turn in turns if isinstance(turn["content"], list) for piece in turn["content"]):
        if piece["type"] != "text":
            piece[piece["type"]] = next(names)
    return {"messages": turns}


def both() -> dict[str, Any]:
    """ms-swift's other form: an object holds a question and its answer."""
    rounds = [{"human": MARKED[1], "assistant": MARKED[2]}, {"human": MARKED[3], "assistant": MARKED[4]}]
    return {"system": "Be brief.", "conversation": rounds, **HELD}


@pytest.mark.parametrize("form", ["openai", "swift", "llava", "sharegpt", "transformers", "parts", "both", "query"])
def test_every_form_is_the_same_sample(form: str, media: Path) -> None:
    """The same conversation as JSONL of each form: equal messages, equal bytes of files, counted as they are mentioned;
    and parse_messages, which training reads with, finds each part where it was."""
    forms: dict[str, Callable[[], dict[str, Any]]] = {
        "openai": lambda: openai(media),
        "swift": swift,
        "llava": llava,
        "sharegpt": lambda: llava(("user", "assistant")),
        "transformers": transformers,
        "parts": in_parts,
        "both": both,
        "query": lambda: {
            "system": "Be brief.", "query": MARKED[3], "response": MARKED[4], "history": [list(MARKED[1:3])], **HELD,
        },
    }  # fmt: skip
    row = forms[form]() | {"kind": "name", "answers": ["a cow", "cow"]}
    messages, about, parts = only(lines(media / "t.jsonl", [row]), media / "out")
    assert messages == SAID and parts == files(media)
    assert about == {"kind": "name", "answers": ["a cow", "cow"]}
    parsed = parse_messages(messages, "")
    assert parsed[1] == Message("user", (Part("image"), "\nWhat is it, ", Part("audio"), "?"))


def test_every_kind_of_file_is_the_same_shard(media: Path) -> None:
    """JSONL, one JSON list, Parquet, CSV of JSON cells, a dataset of typed pictures: the same bytes, but for columns
    that a table of one form must fill."""
    rows = [swift(), {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
                      "images": [], "audios": []}]  # fmt: skip
    expected = built(lines(media / "t.jsonl", rows), media / "jsonl")
    (media / "t.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), media / "t.parquet")
    with (media / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["messages"])
        writer.writeheader()
        writer.writerow({"messages": json.dumps(rows[1]["messages"])})
    features = datasets.Features(
        messages=datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        images=datasets.List(datasets.Image()),
        audios=datasets.List(datasets.Audio()),
    )
    whole = [{**row, **{name: [str(media / one) for one in row[name]] for name in HELD}} for row in rows]
    typed = datasets.Dataset.from_list(whole).cast(features)
    for number, source in enumerate((media / "t.json", media / "t.parquet", typed)):
        assert built(source, media / f"out{number}") == expected, source
    assert built(media / "t.csv", media / "csv")["000000000"] == expected["000000001"]


def test_the_cauldron(media: Path) -> None:
    """Its pictures come before the first question, as it has no marks; what looks like one is text. Captions under the
    same name are none of it."""
    rounds = [{"user": "What is <image>?", "assistant": "A tag.", "source": "x"}, {"user": "And?", "assistant": "No."}]
    row = {"images": ["m/owl.png", "m/cow.jpg"], "texts": rounds}
    messages, _, parts = only(lines(media / "t.jsonl", [row]), media / "out")
    pictures = [{"type": "image"}, {"type": "image"}]
    assert messages[0]["content"] == [*pictures, {"type": "text", "text": "What is <image>?"}]
    assert messages[1] == {"role": "assistant", "content": "A tag.", "source": "x"}
    assert [one["content"] for one in messages[1:]] == ["A tag.", "And?", "No."] and list(parts) == ["0.png", "1.jpg"]
    captions = built(lines(media / "u.jsonl", [{"texts": ["a cow", "cattle"]}]), media / "captions")
    assert captions["000000000"]["txt"] == b"a cow"


def test_a_run_reads_what_was_built(media: Path) -> None:
    """A batch of the stream: no bad sample, every row's pictures in the order of its mentions."""
    built(lines(media / "t.jsonl", [swift(), talk(Q, A), openai(media)]), media / "out")
    data = Data(train=(Source(shards=str(media / "out"), modalities=("messages",)),), batch_size=6, num_workers=0)
    run = Run(name="chat", model=replace(toy_config(), chat=PLAIN), data=data, chat=Chat())
    stream = TrainStream(run, load_tokenizer("bytes"), rank=0, world=1)
    batch = next(iter(stream))
    assert batch.chats is not None and not sum(stream.health.bad.values())
    for row, key in enumerate(batch.keys):
        mentions = [token for token in batch.chats.ids[row][batch.chats.keep[row]].tolist() if token in (-1, -2)]
        assert mentions == ([] if key == "000000001" else [-1, -2, -1])
        images = batch.items["image"]
        first, second = 9, 99
        shades = images.x[images.rows == row, 0, 0, 0].tolist()
        assert shades == pytest.approx([] if key == "000000001" else [first, second], abs=2)


def test_alpaca(tmp_path: Path) -> None:
    """What it is about stands below the instruction; an empty one adds no line. Its own columns are not said twice."""
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "source": "x"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
    ]
    found = built(lines(tmp_path / "t.jsonl", rows), tmp_path / "out")
    trees = [json.loads(sample["json"]) for sample in found.values()]
    first = [{"role": "user", "content": "Add.\n1 2"}, {"role": "assistant", "content": "3"}]
    assert trees[0] == {"messages": first, "source": "x"}
    assert trees[1]["messages"][0]["content"] == "Greet."


def test_what_is_learned_is_kept(tmp_path: Path) -> None:
    """loss, loss_scale and weight of a turn become `learn`; other fields of a turn stay in it."""
    told = {"loss": False, "loss_scale": 0.0, "weight": 0, "learn": False, "train": False}
    for name, value in told.items():
        turns = [
            {"role": "user", "content": "a", "name": "Ann"},
            {"role": "assistant", "content": "b", name: value},
            {"role": "user", "content": "c", "loss": None},
            {"role": "assistant", "content": "d", name: 1 if name == "weight" else True},
        ]
        messages, _, _ = only(lines(tmp_path / "t.jsonl", [{"messages": turns}]), tmp_path / name)
        assert [one.get("learn") for one in messages] == [None, False, None, True]
        assert messages[0] == {"role": "user", "content": "a", "name": "Ann"}
        assert [one.learn for one in parse_messages(messages, "")] == [True, False, True, True]


def test_a_mark_in_a_part_is_text(tmp_path: Path) -> None:
    """Whoever writes parts says what is a picture; only in a plain content a mark is one."""
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "What is <image> in HTML?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Not <img>."}]},
    ]
    messages, _, parts = only(lines(tmp_path / "t.jsonl", [{"messages": turns}]), tmp_path / "out")
    assert [one["content"] for one in messages] == ["What is <image> in HTML?", "Not <img>."] and parts == {}


def talk(*contents: Any, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)], **more}


Q, A = "What?", "That."
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "more marks": (talk("<image><image> a", A, images=["m/owl.png"]), "messages_parts",
                   r"row 1 has 2 marks <image> .*, and the column 'images' holds 1; give as many"),
    "more files": (talk("<image> a", A, images=["m/owl.png"] * 3), "messages_parts", r"1 marks <image> .* holds 3"),
    "mark without files": (talk("see <audio>", A), "messages_parts", r"1 marks <audio> .* holds 0"),
    "files without marks": (talk(Q, A, images=["m/owl.png"]), "messages_parts", r"0 marks <image> .* holds 1"),
    "no file": (talk([{"type": "image"}], A), "messages_parts", r"1 marks <image> .* holds 0"),
    "no answer": (talk(Q), "messages_unlearned", r"none of its 1 messages is an answer to be learned"),
    "empty answer": (talk(Q, " \n"), "messages_unlearned", r"none of its 2 messages"),
    "nothing learned": ({"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A, "loss": 0}]},
                        "messages_unlearned", "none of its 2 messages"),
    "role": ({"messages": [{"role": "tool", "content": Q}, *talk(Q, A)["messages"]]}, "messages_role",
             r"row 1: message 0 is of the role 'tool', and none of user, human, assistant"),
    "no role": ({"messages": [{"content": Q}]}, "messages_role", r"of the role None"),
    "learned question": ({"messages": [{"role": "user", "content": Q, "loss": True}]}, "messages_role", "only answers"),
    "half learned": ({"messages": [{"role": "assistant", "content": A, "loss_scale": 0.5}]}, "messages_content",
                     r"its 'loss_scale' is 0\.5; a turn is learned \(1\) or not \(0\)"),
    "empty": ({"messages": []}, "messages_missing", r"row 1: its column 'messages' holds no list of messages"),
    "none": ({"messages": None}, "messages_missing", "holds no list of messages"),
    "call": ({"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": None, "tool_calls": []}]},
             "messages_content", r"message 1: its content is a NoneType, and neither a text nor a list of parts"),
    "no object": ({"messages": ["hello"]}, "messages_content", "a message is no object"),
    "part": (talk([{"type": "video", "video": "a.mp4"}], A), "messages_content", "of no kind that is read"),
    "video": (talk("<video> a", A), "messages_content", "mentions a video"),
    "video column": (talk(Q, A, videos=["a.mp4"]), "messages_content", "row 1 has 'videos', which is not read"),
    "base64": (talk([{"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}], A), "image_damaged",
               "is no data URL of base64; write data:TYPE;base64,DATA"),
    "sound": (talk([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}], A), "audio_format", ""),
    "damaged": (talk("<image>", A, images=["m/bad.png"]), "image_damaged", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_left_out_by_its_row(name: str, media: Path) -> None:
    """Under a code that training counts too; the rows around it are written, and the counts are both said."""
    (media / "m" / "bad.png").write_bytes((media / "m" / "owl.png").read_bytes()[:-40])
    row, code, words = BAD[name]
    found = built(lines(media / "t.jsonl", [talk(Q, A), row, talk(Q, A)]), media / "out")
    assert list(found) == ["000000000", "000000002"]
    (line,) = map(json.loads, (media / "out" / "left_out.jsonl").read_text().splitlines())
    assert (line["key"], line["code"]) == ("000000001", code) and code in CODES
    assert re.search(words, line["why"]), line["why"]


def test_files_that_are_not_there(media: Path) -> None:
    """As in every table: named at the end, or left out when asked. A URL is refused at once, with a remedy."""
    path = lines(media / "t.jsonl", [talk("<image>", A, images=["m/none.png"]), talk(Q, A)])
    with pytest.raises(UserError, match=r"1 of 2 samples lack a file: .*none\.png; put them there and repeat"):
        build(path, media / "out", progress=False)
    assert list(built(path, media / "without", allow_missing=True)) == ["000000001"]
    assert left_out(media / "without") == {"000000000": "missing_file"}
    url = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    with pytest.raises(UserError, match=r"row 0: image 0 of its conversation holds a URL .*; fetch the files first"):
        build(lines(media / "u.jsonl", [talk(url, A)]), media / "url", progress=False)


def test_columns_can_be_named(media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--messages and --image of one's own names; what was guessed is said, and another column makes it a table."""
    row = {"chat": talk("<image> a", A)["messages"], "photos": ["m/owl.png"], "id": "x/1"}
    path = lines(media / "t.jsonl", [row])
    columns = Columns(messages="chat", image="photos", key="id")
    (sample,) = built(path, media / "out", columns=columns).items()
    assert sample[0] == "x-1" and set(sample[1]) == {"0.png", "json"}
    path = lines(media / "u.jsonl", [talk(Q, A, text="plain")])
    built(path, media / "guessed")
    assert "messages from the column 'messages'" in capsys.readouterr().out
    assert set(built(path, media / "table", columns=Columns(text="text"))["000000000"]) == {"txt", "json"}
    with pytest.raises(UserError, match=r"has no column 'talk' \(--messages\)"):
        built(path, media / "none", columns=Columns(messages="talk"))


def test_mistakes_in_a_json_file(tmp_path: Path) -> None:
    """One line with the place. Objects on lines are read under this name too."""
    for text, words in (("[{]", r"is no JSON \(line 1\); write one list"), ("[1]", r"row 0 of .* is no object")):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(UserError, match=words):
            built(tmp_path / "t.json", tmp_path / "out")
    assert len(built(lines(tmp_path / "l.json", [talk(Q, A), talk(Q, A)]), tmp_path / "lines")) == 2


def test_parts_of_items_are_counted_as_they_are_mentioned(media: Path) -> None:
    """Samples from memory: a part that is not mentioned, or in another order, is refused with both counts."""
    parts, said = files(media), {"messages": SAID}
    items = [
        Item("whole", {**parts, "json": json.dumps(said).encode()}),
        Item("fewer", {"0.png": parts["0.png"], "1.wav": parts["1.wav"], "json": json.dumps(said).encode()}),
        Item("order", {"0.wav": parts["1.wav"], "1.png": parts["0.png"], "2.jpg": parts["2.jpg"],
                       "json": json.dumps(said).encode()}),
        Item("cut", {**parts, "2.jpg": parts["2.jpg"][:-40], "json": json.dumps(said).encode()}),
    ]  # fmt: skip
    assert list(built(items, media / "out")) == ["whole"]
    assert left_out(media / "out") == {"fewer": "messages_parts", "order": "messages_parts", "cut": "image_damaged"}
    why = (media / "out" / "left_out.jsonl").read_text()
    assert "mention 3 parts (image, audio, image), and it holds 2 (image, audio)" in why


def test_a_folder_of_conversations(media: Path) -> None:
    """Counted files are parts of the conversation of that name, and samples of their own where there is none; the
    bytes are those of the same conversation from a table. Two files of one number are refused."""
    folder = media / "folder"
    folder.mkdir()
    for name, data in files(media).items():
        (folder / f"talk.{name}").write_bytes(data)
        (folder / f"other.{name}").write_bytes(data)
    (folder / "talk.json").write_text(json.dumps({"messages": SAID}, ensure_ascii=False))
    (folder / "other.json").write_text('{"caption": "x"}')
    found = built(folder, media / "out")
    assert set(found) == {"talk", "other", "other_0", "other_1", "other_2"}
    assert found["talk"] == built(lines(media / "t.jsonl", [swift()]), media / "table")["000000000"]
    (folder / "talk.0.jpg").write_bytes(files(media)["2.jpg"])
    with pytest.raises(UserError, match=r"talk has both \.0\.(jpg|png) and \.0\.(jpg|png); one part 0 per sample"):
        built(folder, media / "twice")


def test_two_processes_write_the_same(media: Path) -> None:
    """Also where some rows are refused, and files lie in the table."""
    rows = [openai(media), talk(Q), swift(), *[talk(Q, f"{number}") for number in range(4)]]
    path = lines(media / "t.jsonl", rows)
    build(path, media / "one", progress=False, samples_per_shard=2)
    build(path, media / "two", progress=False, samples_per_shard=2, workers=2)
    assert everything(media / "one") == everything(media / "two")
    assert soundfile.info(media / "m" / "who.wav").samplerate == 16_000
