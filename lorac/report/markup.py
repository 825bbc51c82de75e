"""Text, numbers and pictures as HTML. Whatever comes from a user passes through `text`."""

from __future__ import annotations

import math
import struct
from base64 import b64encode

from lorac.report.style import STYLE

# The browser itself then refuses scripts and anything from outside, should a caption ever slip through as markup.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# What HTML forbids, UTF-8 cannot carry or a reader cannot trust: control characters, the lone surrogates of undecodable
# file names, and the characters that reverse the order in which the rest of a line is shown (CVE-2021-42574).
_CONTROL = [*range(9), 11, 12, *range(14, 32), *range(127, 160)]
_BIDIRECTIONAL = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_FORBIDDEN = dict.fromkeys([*_CONTROL, *_BIDIRECTIONAL, *range(0xD800, 0xE000)], "\N{REPLACEMENT CHARACTER}")
_INERT = {**_FORBIDDEN, 34: "&quot;", 38: "&amp;", 39: "&#x27;", 60: "&lt;", 62: "&gt;"}


def text(value: str) -> str:
    """`value` as inert text, for content and for quoted attributes."""
    return value.translate(_INERT)


def number(value: float) -> str:
    """Four significant digits, whole numbers in full with their thousands apart: "2,808", "0.1094", "5e-5"."""
    if math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """ "1 step", "2,808 steps"."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


def percent(share: float) -> str:
    """ "82 %" of 0.82, with a narrow space that does not break."""
    return f"{100 * share:.0f}\u202f%"


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of a PNG, from its IHDR chunk (PNG specification, section 11.2.2), or of a lossy WebP,
    from the header of its key frame (RFC 6386, section 9.1)."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("neither a PNG file nor a lossy WebP file")


def image(data: bytes, alt: str) -> str:
    """A PNG or WebP as an <img> that needs no file beside the page; its size keeps the layout from jumping."""
    width, height = image_size(data)
    kind = "png" if data.startswith(b"\x89") else "webp"
    source = f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"
    return f'<img src="{source}" width="{width}" height="{height}" decoding="async" alt="{text(alt)}">'


def document(title: str, body: str) -> bytes:
    """A whole page around `body`, which is markup; `title` is a text."""
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="lorac">\n'
        f'<title>{text(title)} &ndash; lorac</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{STYLE}</style>\n</head>\n"
    )
    return f"{head}<body>\n{body}</body>\n</html>\n".encode()
