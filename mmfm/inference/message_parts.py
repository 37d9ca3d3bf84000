"""Parts of messages as OpenAI's API has them, as our own: what lies in a data: URL or on this machine, and no more.

{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}          -> {"type": "image", "image": bytes}
{"type": "input_audio", "input_audio": {"data": "<base64>", "format": "wav"}}     -> {"type": "audio", "audio": bytes}
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmfm.config import UserError, require

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # of an address; one letter is a drive of Windows
IMAGE = 'give {"type": "image", "image": PATH}'
AUDIO = 'give {"type": "audio", "audio": PATH}'


def own_parts(messages: Sequence[Any]) -> list[Any]:
    """The messages with our own parts in place of these. UserError for an address that would have to be fetched, and
    for what is no base64; what else is wrong with a message is for who reads it."""
    return [_message(message, f"messages: message {number}") for number, message in enumerate(messages)]


def _message(message: Any, where: str) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return message
    return {**message, "content": [_part(piece, where) for piece in content]}


def _part(piece: Any, where: str) -> Any:
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    return THEIRS[kind](piece, where) if isinstance(kind, str) and kind in THEIRS else piece


def _image_url(piece: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = piece.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str) or not url:
        raise UserError(
            f'{where}: an image_url holds no url; give {{"image_url": {{"url": "data:image/png;base64,..."}}}}'
        )
    if url.startswith("data:"):
        return {"type": "image", "image": _of_data(url, where)}
    told = f"{where}: {url[:80]} is an address, and nothing is fetched for a conversation"
    require(not SCHEME.match(url), f"{told}; save the picture and {IMAGE}, or give a data: URL")
    return {"type": "image", "image": url}


def _of_data(url: str, where: str) -> bytes:
    """The bytes of data:image/TYPE;base64,... (RFC 2397)."""
    head, _, data = url.partition(",")
    told = f"{where}: {head[:80]!r} begins no picture in base64"
    require(head.startswith("data:image/") and head.endswith(";base64"), f"{told}; begin with data:image/png;base64,")
    return _bytes(data, "the picture of a data: URL", where)


def _input_audio(piece: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = piece.get("input_audio")
    data = given.get("data") if isinstance(given, Mapping) else None
    if not isinstance(data, str) or not data:
        raise UserError(f'{where}: an input_audio holds no data; give {{"data": BASE64, "format": "wav"}}, or {AUDIO}')
    return {"type": "audio", "audio": _bytes(data, "the data of an input_audio", where)}


def _bytes(text: str, what: str, where: str) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as why:
        raise UserError(f"{where}: {what} is no base64 ({why}); encode the file's bytes again") from None
    require(bool(found), f"{where}: {what} is empty; encode the file's bytes again")
    return found


THEIRS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    "image_url": _image_url,
    "input_audio": _input_audio,
}
