"""Text, numbers and pictures as HTML. Whatever comes from a user passes through `text`."""

from __future__ import annotations

import math
import struct
from base64 import b64encode
from html import escape

# What HTML forbids, UTF-8 cannot carry or a reader cannot trust: control characters, the lone surrogates of undecodable
# file names, and the characters that reverse the order in which the rest of a line is shown (CVE-2021-42574).
_CONTROL = [*range(9), 11, 12, *range(14, 32), *range(127, 160)]
_BIDIRECTIONAL = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_FORBIDDEN = dict.fromkeys([*_CONTROL, *_BIDIRECTIONAL, *range(0xD800, 0xE000)], "\N{REPLACEMENT CHARACTER}")


def text(value: str) -> str:
    """`value` as inert text, for content and for quoted attributes."""
    return escape(value.translate(_FORBIDDEN))


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


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the IHDR chunk, which a PNG begins with (PNG specification, section 11.2.2)."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR":
        raise ValueError("not a PNG file")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def image(png: bytes, alt: str) -> str:
    """`png` as an <img> that needs no file beside the page; its size keeps the layout from jumping."""
    width, height = png_size(png)
    data = b64encode(png).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" decoding="async" alt="{text(alt)}">'
    )
