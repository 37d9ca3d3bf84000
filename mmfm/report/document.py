"""A page in one file: the style and the script of this package, and a policy that lets nothing else act or load."""

import base64
import hashlib
from pathlib import Path

from mmfm.config import UserError
from mmfm.report.markup import Html, join, tag
from mmfm.runtime.files import replace_file

HERE = Path(__file__).parent


def document(title: str, *parts: Html, more_style: str = "", active: bool = True, class_: str | None = None) -> Html:
    """A whole page with these parts as its body. The policy names the hashes of the style and the script.

    active: with the script of the report.
    """
    style, script = (Html((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    style = Html(style + more_style)
    policy = f"default-src 'none'; img-src data:; media-src data:; style-src {_hash(style)}"
    policy += f"; script-src {_hash(script)}" if active else ""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=f"{policy}; base-uri 'none'; form-action 'none'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    body = tag("body", *parts, tag("script", script) if active else None, class_=class_)
    return join((Html("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n"))


def sectioned(parts: dict[str, list[Html]]) -> tuple[Html, Html]:
    """The links to the sections, and the sections; those without parts are left out."""
    names = [name for name, own in parts.items() if own]
    links = (tag("li", tag("a", name, href=f"#{_anchor(name)}")) for name in names)
    sections = (tag("section", tag("h2", name), *parts[name], id=_anchor(name)) for name in names)
    return tag("nav", tag("ul", *links), aria_label="Sections"), tag("main", *sections)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def save_page(page: Html, path: Path) -> Path:
    """Whole or not at all; returns its path. UserError: no room, or no right, to write."""
    try:
        replace_file(path, page.encode("utf-8", "backslashreplace"))  # halves of surrogate pairs as escapes
    except OSError as why:
        told = f"{path} cannot be written ({why.strerror}); free some space or change the folder's rights"
        raise UserError(told) from None
    return path
