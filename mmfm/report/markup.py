"""HTML that cannot forget to escape: `tag` builds it, and every child or attribute that is not `Html` is text."""

import html
from collections.abc import Iterable

VOID = frozenset({"hr", "img", "input", "meta"})


class Html(str):
    """Markup made by `tag`, `join` or a file of ours; any other string is data and gets escaped."""


def tag(element: str, *children: object, **attributes: object) -> Html:
    """One element. What is None is left out; a True attribute is bare; class_ means class, aria_label aria-label."""
    opening = [element]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.strip("_").replace("_", "-")
        opening.append(name if value is True else f'{name}="{html.escape(str(value))}"')
    start = f"<{' '.join(opening)}>"
    return Html(start) if element in VOID else Html(f"{start}{join(children)}</{element}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts in a row; None is left out, and what is not `Html` is escaped."""
    texts = [part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None]
    return Html(html.escape(between).join(texts))
