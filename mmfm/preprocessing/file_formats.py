"""What a file is by its first bytes, where it is none that is read here: its name in words, and the way out.

The name of a file is never asked: a .jpg that is a HEIC picture is no damaged JPEG, and a .wav that is a web page was
never a sound. Sources: the formats' own specifications, and the signatures that file(1) knows. Standard library only.
"""

from typing import Literal, NamedTuple

Medium = Literal["picture", "sound", "video", "else"]
READ = {"picture": "PNG, JPEG or WebP", "sound": "WAV, FLAC, OGG or MP3"}
OURS = (
    "a PNG picture",
    "a JPEG picture",
    "a WebP picture",
    "a WAV sound",
    "a FLAC sound",
    "an OGG sound",
    "an MP3 sound",
)
HEAD = 4_096  # bytes in which a text shows what it is


class Kind(NamedTuple):
    """A format as one names it in a sentence, and what it holds."""

    name: str
    medium: Medium


PLAIN: tuple[tuple[int, bytes, Kind], ...] = (  # offset, bytes that stand there, and what it is
    (0, b"\x89PNG\r\n\x1a\n", Kind("a PNG picture", "picture")),
    (0, b"\xff\xd8\xff", Kind("a JPEG picture", "picture")),
    (0, b"GIF87a", Kind("a GIF picture", "picture")),
    (0, b"GIF89a", Kind("a GIF picture", "picture")),
    (0, b"II*\0", Kind("a TIFF picture (or a camera's raw one)", "picture")),
    (0, b"MM\0*", Kind("a TIFF picture (or a camera's raw one)", "picture")),
    (0, b"II+\0", Kind("a TIFF picture", "picture")),
    (0, b"MM\0+", Kind("a TIFF picture", "picture")),
    (0, b"\0\0\0\x0cjP  ", Kind("a JPEG 2000 picture", "picture")),
    (0, b"\xff\x4f\xff\x51", Kind("a JPEG 2000 picture", "picture")),
    (0, b"\0\0\0\x0cJXL ", Kind("a JPEG XL picture", "picture")),
    (0, b"\xff\x0a", Kind("a JPEG XL picture", "picture")),
    (0, b"\0\0\1\0", Kind("an icon (ICO)", "picture")),
    (0, b"8BPS", Kind("a Photoshop picture (PSD)", "picture")),
    (0, b"\x76\x2f\x31\x01", Kind("an OpenEXR picture", "picture")),
    (0, b"qoif", Kind("a QOI picture", "picture")),
    (0, b"DDS ", Kind("a DDS picture", "picture")),
    (0, b"%!PS", Kind("a PostScript file", "picture")),
    (0, b"fLaC", Kind("a FLAC sound", "sound")),
    (0, b"ID3", Kind("an MP3 sound", "sound")),
    (0, b"#!AMR", Kind("an AMR sound", "sound")),
    (0, b"caff", Kind("a CAF sound", "sound")),
    (0, b".snd", Kind("an AU sound", "sound")),
    (0, b"riff\x2e\x91\xcf\x11", Kind("a Wave64 sound (W64)", "sound")),
    (0, b"MAC ", Kind("a Monkey's Audio sound (APE)", "sound")),
    (0, b"wvpk", Kind("a WavPack sound", "sound")),
    (0, b"TTA1", Kind("a True Audio sound (TTA)", "sound")),
    (0, b"MPCK", Kind("a Musepack sound", "sound")),
    (0, b"DSD ", Kind("a DSD sound", "sound")),
    (0, b"MThd", Kind("a MIDI file, notes and no sound", "sound")),
    (0, b"ADIF", Kind("an AAC sound", "sound")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("a Windows Media file (WMA or WMV)", "video")),
    (0, b"\x1a\x45\xdf\xa3", Kind("a WebM or Matroska file, such as of Opus or of a video", "video")),
    (0, b"FLV\x01", Kind("a Flash video", "video")),
    (0, b"\0\0\1\xba", Kind("an MPEG video", "video")),
    (0, b"\0\0\1\xb3", Kind("an MPEG video", "video")),
    (0, b"PK\x03\x04", Kind("a ZIP archive", "else")),
    (0, b"\x1f\x8b", Kind("gzip-compressed", "else")),
    (0, b"BZh", Kind("bzip2-compressed", "else")),
    (0, b"\xfd7zXZ\0", Kind("xz-compressed", "else")),
    (0, b"\x28\xb5\x2f\xfd", Kind("zstd-compressed", "else")),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", "else")),
    (0, b"Rar!\x1a\x07", Kind("a RAR archive", "else")),
    (257, b"ustar", Kind("a tar archive", "else")),
    (0, b"%PDF-", Kind("a PDF document", "else")),
    (0, b"\x93NUMPY", Kind("a NumPy array", "else")),
    (0, b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", "else")),
    (0, b"SQLite format 3", Kind("an SQLite database", "else")),
    (0, b"PAR1", Kind("a Parquet table", "else")),
    (0, b"version https://git-lfs", Kind("a pointer of Git LFS and not the file itself", "else")),
)
CHUNKED = {  # after RIFF, RIFX or RF64, or after FORM, at byte 8
    b"WAVE": Kind("a WAV sound", "sound"),
    b"WEBP": Kind("a WebP picture", "picture"),
    b"AVI ": Kind("an AVI video", "video"),
    b"AIFF": Kind("an AIFF sound", "sound"),
    b"AIFC": Kind("an AIFF sound", "sound"),
}
BRANDS = {  # of an ISO base media file, at byte 8
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"), Kind("a HEIC picture", "picture")),
    **dict.fromkeys((b"mif1", b"msf1"), Kind("a HEIF picture (HEIC or AVIF)", "picture")),
    **dict.fromkeys((b"avif", b"avis"), Kind("an AVIF picture", "picture")),
    **dict.fromkeys((b"M4A ", b"M4B ", b"M4P "), Kind("an M4A sound (AAC or ALAC)", "sound")),
    b"crx ": Kind("a camera's raw picture (CR3)", "picture"),
    b"qt  ": Kind("a QuickTime video", "video"),
}
STREAMS = {b"\x80theora": Kind("an Ogg video (Theora)", "video"), b"Speex   ": Kind("an Ogg Speex sound", "sound")}
MARKS = (  # of a text that begins with <
    (b"<svg", Kind("an SVG drawing", "picture")),
    *((mark, Kind("a web page (HTML)", "else")) for mark in (b"<!doctype html", b"<html", b"<head", b"<body")),
)


def kind_of(data: bytes) -> Kind | None:
    """What begins so; None: unknown."""
    data = data[_tag(data) :][:HEAD] if data[:3] == b"ID3" and len(data) > _tag(data) + 4 else data[:HEAD]
    if data[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM") and data[8:12] in CHUNKED:
        return CHUNKED[data[8:12]]
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], Kind("an MP4 file, such as of AAC or of a video", "video"))
    if data[:4] == b"OggS":
        start = data[27 + data[26] :] if len(data) > 27 else b""
        return next((kind for mark, kind in STREAMS.items() if start.startswith(mark)), Kind("an OGG sound", "sound"))
    if found := next((kind for at, magic, kind in PLAIN if data.startswith(magic, at)), None):
        return found
    return _by_fields(data) or _text(data)


def refusal(data: bytes, wanted: Literal["picture", "sound"]) -> str | None:
    """Why this is no `wanted`, in words with a remedy; None where it is of a format that is read, or of none known."""
    kind = kind_of(data)
    if kind is None or (kind.medium == wanted and kind.name in OURS):
        return None
    told = f"this is {kind.name}, no {READ[wanted]} {wanted}"
    convert = f"convert it, such as with: {'magick IN OUT.png' if wanted == 'picture' else 'ffmpeg -i IN OUT.flac'}"
    frames = "take single frames of it, such as with: ffmpeg -i IN -frames:v 1 OUT.png"
    if kind.medium == wanted:
        return f"{told}; {convert}"
    if kind.medium == "video":
        return f"{told}; {convert if wanted == 'sound' else frames}"
    if "LFS" in kind.name:
        return f"{told}; fetch the file with: git lfs pull"
    if "compressed" in kind.name or "archive" in kind.name:
        return f"{told}; unpack it"
    return f"{told}; put the {wanted} itself there, or leave the sample out"


def _tag(data: bytes) -> int:
    """Bytes of an ID3v2 tag, which may stand before a sound of any format."""
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))


def _by_fields(data: bytes) -> Kind | None:
    """Formats of which one mark alone would be found in many files."""
    if data[:2] == b"BM" and data[6:10] == bytes(4) and len(data) > 18 and data[14] in (12, 40, 52, 56, 64, 108, 124):
        return Kind("a BMP picture", "picture")
    if data[:1] == b"P" and data[1:2].isdigit() and data[2:3] in (b"\n", b" ", b"\t", b"\r"):
        return Kind("a PNM picture", "picture")
    if len(data) > 6 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0 and data[2] & 0x3C < 0x34:
        return Kind("an AAC sound", "sound")
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2:
        return Kind("an MP3 sound", "sound")
    if data[:1] == b"\x47" and data[188:189] == b"\x47" and data[376:377] == b"\x47":
        return Kind("an MPEG video", "video")
    return None


def _text(data: bytes) -> Kind | None:
    """A text by the first of the marks in it; any other one only as a text."""
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"<"):
        found = [(at, kind) for mark, kind in MARKS if (at := start.find(mark)) >= 0]
        return min(found, key=lambda one: one[0])[1] if found else Kind("an XML text", "else")
    try:
        words = data[:512].decode("utf-8", "strict" if len(data) <= 512 else "ignore")
    except UnicodeDecodeError:
        return None
    printable = all(letter.isprintable() or letter in "\r\n\t" for letter in words)
    return Kind("a text", "else") if len(words) >= 16 and printable else None
