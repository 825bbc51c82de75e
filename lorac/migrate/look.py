"""What can be seen in a folder of pictures: how many, their captions, their sizes, their transparency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorac.captions import decode_caption, split_tags
from lorac.listing import Picture, pictures

GENERAL = frozenset(("1girl", "1boy", "solo", "no humans", "multiple girls", "2girls", "masterpiece"))
"""Tags that begin captions and yet call nobody in particular."""


@dataclass(frozen=True)
class Look:
    """`captions` are the tags of each caption that can be read, `sizes` the pictures' (width, height)."""

    count: int
    captioned: int
    captions: Sequence[Sequence[str]]
    sizes: Sequence[tuple[int, int]]
    transparent: int

    @property
    def common(self) -> str | None:
        """The tag that all captions begin with, if it may be the name of something."""
        first = {tags[0].casefold() for tags in self.captions if tags}
        if len(first) != 1 or first & GENERAL:
            return None
        return self.captions[0][0]


def look(folder: Path, extension: str, *, thorough: bool = False) -> Look:
    """Look at the pictures of a folder; not below it.

    Only a `thorough` look counts all transparent pictures; the other stops at the first. Raises InputError for a
    folder without pictures, and for pictures that share a caption.
    """
    found = pictures(folder.absolute(), extension)
    captions = [_tags(picture) for picture in found if picture.caption_path is not None]
    sizes, transparent = [], 0
    for picture in found:
        size, clear = _size(picture.path, alpha=thorough or not transparent)
        sizes += [size] if size is not None else []
        transparent += clear
    return Look(len(found), len(captions), [tags for tags in captions if tags], sizes, transparent)


def extensions(folder: Path) -> Counter[str]:
    """How many files of each extension lie in a folder, in small letters."""
    return Counter(entry.suffix.lower() for entry in folder.iterdir() if entry.is_file())


def _tags(picture: Picture) -> list[str]:
    """The caption's tags; none when it cannot be read, which the build will say better."""
    try:
        return split_tags(decode_caption(Path(str(picture.caption_path)).read_bytes()))
    except (OSError, ValueError):
        return []


def _size(path: str, *, alpha: bool) -> tuple[tuple[int, int] | None, bool]:
    """(width, height) and whether any pixel is transparent; (None, False) for what is no picture, which the build
    will say better."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            size = image.size
            if not alpha or ("A" not in image.mode and "transparency" not in image.info):
                return size, False
            opaque = image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    except Exception:  # Pillow's plug-ins raise whatever a damaged file leads them to
        return None, False
    return size, not opaque
