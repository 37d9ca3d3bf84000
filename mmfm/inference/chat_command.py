"""`mmfm chat` once the model is loaded: answers on the standard output, as they are written."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmfm.config import Model, UserError, require
from mmfm.data.conversations import template_of
from mmfm.inference.chat_args import SUFFIXES, ChatArgs, files_in
from mmfm.inference.chat_documents import Shelf, shelf_of, tell
from mmfm.inference.documents import Document
from mmfm.inference.generate_command import shown
from mmfm.inference.message_parts import own_parts

HELP = "/image FILE and /audio FILE add to what you say next, /new begins again, /quit or Ctrl-D ends."


@runtime_checkable
class Answers(Protocol):
    """What it asks of a model."""

    config: Model

    def chat_many(self, chats: Sequence[Any], **options: Any) -> list[Any]: ...
    def stream_chat(self, messages: Any, **options: Any) -> Any: ...
    def complete(self, text: str, **options: Any) -> list[Any]: ...


def converse(model: Answers, args: ChatArgs, documents: Sequence[Document] = ()) -> None:
    """Answer what is asked, or each line of a conversation, after those of these documents that fit it."""
    options = {name: value for name, value in args.options.items() if name != "batch_size"}
    shelf = shelf_of(args, documents, model)
    if args.complete:
        (text,) = model.complete(args.text, **options)
        print(shown(text), flush=True)
    elif args.messages:
        _say(model, read_messages(Path(args.messages)), options, shelf)
    elif args.folders:
        _each(model, args, options, shelf)
    elif args.once:
        _say(model, [*_system(args), user(args.text, args.image, args.audio)], options, shelf)
    else:
        _lines(model, args, options, shelf)


def user(text: str, images: Sequence[str] = (), sounds: Sequence[str] = ()) -> dict[str, Any]:
    """A turn of the user: pictures, then sounds, then what is said."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": file} for file in images]
    parts += [{"type": "audio", "audio": file} for file in sounds]
    return {"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text else [])]}


def read_messages(file: Path) -> list[dict[str, Any]]:
    """A conversation of a .json, alone or as its "messages"; paths in it begin at its folder. UserError."""
    try:
        tree = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as why:
        raise UserError(f"--messages: {file} is no JSON ({why}); write it again") from None
    tree = tree.get("messages") if isinstance(tree, Mapping) else tree
    listed = isinstance(tree, list) and all(isinstance(one, Mapping) for one in tree)
    require(listed, f'--messages: {file} holds no list of {{"role", "content"}}')
    assert isinstance(tree, list)
    return [{**one, "content": _placed(one.get("content"), file.parent)} for one in own_parts(tree)]


def _placed(content: Any, folder: Path) -> Any:
    if not isinstance(content, list):
        return content
    return [
        {**piece, kind: str(folder / piece[kind])}
        if isinstance(piece, Mapping) and (kind := piece.get("type")) in SUFFIXES and isinstance(piece.get(kind), str)
        else piece
        for piece in content
    ]


def _system(args: ChatArgs) -> list[dict[str, Any]]:
    return [{"role": "system", "content": args.system}] if args.system else []


def _each(model: Answers, args: ChatArgs, options: Mapping[str, Any], shelf: Shelf | None) -> None:
    """A line for each file of the folder: its name, a tab, the answer on one line. All have the same sources."""
    ((kind, folder),) = args.folders
    files, keys = files_in(folder, kind), []
    for start in range(0, len(files), args.batch_size):
        some = files[start : start + args.batch_size]
        chats = []
        for file in some:
            given = {name: [file if Path(one).is_dir() else one for one in getattr(args, name)] for name in SUFFIXES}
            asked: list[Any] = [*_system(args), user(args.text, given["image"], given["audio"])]
            if shelf is not None:
                asked, keys = shelf.before(asked)
            chats.append(asked)
        for file, answer in zip(some, model.chat_many(chats, **options), strict=True):
            print(f"{file}\t{shown(' '.join(answer.split()))}", flush=True)
    if shelf is not None:
        tell(keys)


def _say(model: Answers, messages: Sequence[Any], options: Mapping[str, Any], shelf: Shelf | None) -> str:
    """Print an answer as it is written, and give it."""
    messages, keys = (messages, []) if shelf is None else shelf.before(messages)
    pieces, said = model.stream_chat(messages, **options), ""
    finish = None
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            finish = end.value
            break
        said += piece
        print(shown(piece), end="", flush=True)
    print(flush=True)
    if shelf is not None:
        tell(keys)
    if finish == "length":
        print("mmfm: the answer was cut before its end; give a larger --max-tokens", file=sys.stderr)
    return said


def _lines(model: Answers, args: ChatArgs, options: Mapping[str, Any], shelf: Shelf | None) -> None:
    """A conversation: what is said on each line is answered, with all that was said before."""
    template_of(model.config)
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    messages, held = _system(args), {"image": list(args.image), "audio": list(args.audio)}
    for line in _typed():
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return
        if word == "/new":
            messages, held = _system(args), {"image": [], "audio": []}
        elif word in ("/image", "/audio"):
            file = rest.strip()
            if Path(file).is_file():
                held[word[1:]].append(file)
            else:
                print(f"mmfm: there is no file {file!r}", file=sys.stderr)
        elif word.startswith("/") and word[1:].isalpha():
            print(f"mmfm: there is no {word}. {HELP}", file=sys.stderr)
        elif line.strip() or any(held.values()):
            messages = _answered(model, messages, user(line.strip(), held["image"], held["audio"]), options, shelf)
            held = {"image": [], "audio": []}
    unsaid = [file for files in held.values() for file in files]
    if unsaid:
        print(f"mmfm: nothing was said about {', '.join(unsaid)}; ask by --text, or on a line", file=sys.stderr)


def _answered(
    model: Answers,
    messages: list[dict[str, Any]],
    said: dict[str, Any],
    options: Mapping[str, Any],
    shelf: Shelf | None,
) -> list[dict[str, Any]]:
    """The conversation with what was said and its answer; as it was, where it cannot be answered."""
    try:
        answer = _say(model, [*messages, said], options, shelf)
    except UserError as why:
        print(f"mmfm: {why}", file=sys.stderr)
        return messages
    return [*messages, said, {"role": "assistant", "content": answer}]


def _typed() -> Iterator[str]:
    """Lines of the standard input, with a prompt on a terminal."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
