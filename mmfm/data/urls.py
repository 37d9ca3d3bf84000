"""Addresses of shards: which schemes are opened, and how a shard's URL, its folder's and its index's make each other.

Standard library only.
"""

import re
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from mmfm.config import UserError

SCHEMES = ("s3", "gs", "http", "https", "hf")


def check_scheme(url: str) -> str:
    """The scheme, in small letters. Raises UserError unless it is one of SCHEMES and a host or bucket follows."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme.lower() not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(
            f"{shown(scheme)[:20]!r} is no scheme that is opened: a shard is a local file, or one of {known}"
        )
    try:
        host, _ = urlsplit(url).netloc, urlsplit(url).port if scheme.lower() in ("http", "https") else None
    except ValueError:
        host = ""
    if not host or not rest.startswith("//"):
        raise UserError(f"{shown(url)!r} names no host or bucket after {scheme}://, or no port that there is")
    return scheme.lower()


def shown(url: str) -> str:
    """A URL as it may be logged: without user, password, query and fragment, which hold credentials."""
    before, slashes, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    told = before + slashes + host.rpartition("@")[2] + slash + path if slashes else url.partition("?")[0]
    return "".join(letter if letter.isprintable() else "?" for letter in told)[:300]


def beside(url: str, name: str) -> str:
    """The URL of a file in the folder `url`."""
    if check_scheme(url) == "s3":  # there, every letter stands for itself
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def folder_of(url: str) -> tuple[str, str]:
    """A shard's folder and its name there; a folder and nothing."""
    parts = None if check_scheme(url) == "s3" else urlsplit(url)
    path = url if parts is None else parts.path
    if not path.endswith(".tar"):
        return url, ""
    folder, _, name = path.rpartition("/")
    return (folder, name) if parts is None else (urlunsplit(parts._replace(path=folder)), unquote(name))
