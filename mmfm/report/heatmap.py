"""A confusion matrix as a heat map, with a tooltip on every cell; a very full one becomes a PNG, made here by hand."""

import base64
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

from mmfm.report.charts import at
from mmfm.report.markup import Html, tag

Cell = tuple[int, int, int]  # true class, predicted class, how often
MOST_CELLS = 4_000  # as SVG, each with its tooltip; beyond, it is a picture


def heat_map(cells: Sequence[Cell], rows: Sequence[int], classes: Sequence[str], columns: int, label: str) -> Html:
    """How often each true class (a row, from `rows`) was read as each class: right in one colour, wrong in another.

    Strength is the share of the row, as a cube root, so that a single mistake can be seen.
    """
    place = {true: i for i, true in enumerate(rows)}
    shares = _shares(cells)
    few = len(cells) <= MOST_CELLS
    drawn = [_cell(cell, shares[cell], place, classes) for cell in cells] if few else [_picture(shares, place, columns)]
    frame = tag("rect", width="100%", height="100%", class_="ground")
    stretch = {"preserveAspectRatio": "none", "width": "100%", "height": "100%"}
    height = min(440, max(14 * len(rows), 120)) if len(rows) < columns / 2 else 440
    labels = [*_row_labels([class_name(classes, i) for i in rows], height), *_column_labels(classes, columns)]
    parts = (frame, tag("svg", *drawn, viewBox=f"0 0 {columns} {len(rows)}", **stretch), *labels)
    return tag("div", tag("svg", *parts, width="100%", height=height, role="img", aria_label=label), class_="heat")


def _shares(cells: Sequence[Cell]) -> dict[Cell, tuple[int, float]]:
    """For each cell the total of its row, and its strength."""
    totals: Counter[int] = Counter()
    for true, _, count in cells:
        totals[true] += count
    return {cell: (totals[cell[0]], (cell[2] / totals[cell[0]]) ** (1 / 3)) for cell in cells}


def _cell(cell: Cell, share: tuple[int, float], place: dict[int, int], classes: Sequence[str]) -> Html:
    (true, seen, count), (total, strength) = cell, share
    words = f"{class_name(classes, true)} read as {class_name(classes, seen)}: {count:,} of {total:,}"
    square = {"x": seen, "y": place[true], "width": 1, "height": 1, "fill_opacity": f"{strength:.2f}"}
    return tag("rect", tag("title", words), **square, class_="right" if true == seen else "wrong")


def class_name(classes: Sequence[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def _row_labels(names: Sequence[str], height_px: int) -> Iterable[Html]:
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 10**9) if height_px / len(names) * n >= 12)
    for i in range(0, len(names), every):
        yield tag("text", _short(names[i]), x=0, y=at(100 * (i + 0.5) / len(names)), dx=-6, dy=4, class_="tick y")


def _column_labels(classes: Sequence[str], columns: int) -> Iterable[Html]:
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 10**9) if n * 26 >= columns)
    for nth, i in enumerate(range(0, columns, every)):
        kind = f"tick y{' minor' * (nth % 2)}"
        text = tag("text", _short(class_name(classes, i)), dx=-6, dy=4, transform="rotate(-60)", class_=kind)
        yield tag("svg", text, x=at(100 * (i + 0.5) / columns), y="100%", overflow="visible")


def _picture(shares: dict[Cell, tuple[int, float]], place: dict[int, int], columns: int) -> Html:
    pixels = [bytearray(columns) for _ in place]
    for (true, seen, _), (_, strength) in shares.items():
        pixels[place[true]][seen] = max(1, round(127 * strength)) + (0 if true == seen else 128)
    size = {"width": columns, "height": len(pixels), "preserveAspectRatio": "none"}
    return tag("image", href=png_uri(pixels), **size, class_="pixelated")


def png_uri(rows: Sequence[bytes | bytearray]) -> str:
    """A PNG of palette indices: 0 clear, 1 to 127 rising strength of the right colour, 129 to 255 of the wrong one."""
    right, wrong = bytes((0x00, 0x72, 0xB2)), bytes((0xD5, 0x5E, 0x00))
    clear = bytes(min(255, 2 * (i % 128)) for i in range(256))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)  # eight bits, by palette
    body = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows), 9)
    parts = {b"IHDR": header, b"PLTE": right * 128 + wrong * 128, b"tRNS": clear, b"IDAT": body, b"IEND": b""}
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts.items()
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()
