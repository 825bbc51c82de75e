"""What rules can see of a picture's pixels: what is cut out, where the figure stands, what it is a copy of.

A picture is read once, in threads, and looked at in small: a figure's place needs no detail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lorac.kinds.image import HIDDEN, Refused, header, layers
from lorac.recipe.buckets import Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

SMALL = 96
"""Longest side, about, at which a figure is looked for."""
HASHED = 16
"""Rows and columns of the difference hash; 8 are usual, too few for drawings of one character."""
SAME_BITS, SAME_LEVELS = 26, 24
"""Copies differ in at most so many of the hash's 256 bits, and nowhere by more levels (of 255) in the tiny picture.
JPEG of quality 60 and scaling cost up to 18 bits and 16 levels; another expression of the same doll 31 levels."""
NEAR = 24
"""How far a channel (0 to 255) may be from the background's colour and still be background."""
PLAIN = 0.95
"""Share of the upper border that has one colour where a background is plain."""
NOTHING = 0.01
"""A picture of which less than this share is opaque shows nothing."""

Seen = TypeVar("Seen")
Progress = Callable[[int, int], None]
"""Called with (pictures read, pictures in all)."""


@dataclass(frozen=True)
class Figure:
    """Where the figure is. `centre`: of its pixels, from left (0) to right (1). `bottom`: of its box, from the top (0).

    `width` and `fill` say its shape: width by height of the box, and the share of the box that it covers.
    """

    centre: float
    bottom: float
    width: float
    fill: float


@dataclass(frozen=True)
class Look:
    """Of one picture. `cut_out`: it has transparent pixels; `shown` is the share of opaque ones.

    `figure` is None where figure and background cannot be told apart. `tiny` is the picture on white as HASHED rows of
    HASHED + 1 RGB pixels, and `hash` the `difference_hash` of its grey values.
    """

    size: Size
    cut_out: bool
    shown: float
    figure: Figure | None
    tiny: bytes
    hash: int

    @property
    def empty(self) -> bool:
        """Transparent all over."""
        return self.shown < NOTHING

    def copies(self, other: Look) -> bool:
        """Whether two pictures are the same but for compression, size or a small retouch."""
        if (self.hash ^ other.hash).bit_count() > SAME_BITS:
            return False
        return max(abs(a - b) for a, b in zip(self.tiny, other.tiny, strict=True)) <= SAME_LEVELS


Header = tuple[Size, bool]
"""(width, height) upright, and whether the picture may have transparent parts."""


@dataclass
class Looks:
    """All pictures of one call of `lorac check`, so that the points of a matrix read each of them once between them."""

    progress: Progress | None = None
    _looks: dict[str, Look | Refused] = field(default_factory=dict)
    _headers: dict[str, Header | Refused] = field(default_factory=dict)

    def of(self, paths: Iterable[str]) -> dict[str, Look]:
        """The looks of picture files by path; those that cannot be used are left out."""
        wanted = list(dict.fromkeys(paths))
        self._read(_look, wanted, self._looks)
        return {path: seen for path in wanted if isinstance(seen := self._looks[path], Look)}

    def headers(self, paths: Iterable[str]) -> dict[str, Header | Refused]:
        """Size and transparency by path, or why the picture cannot be used. What was looked at is not read again."""
        wanted = list(dict.fromkeys(paths))
        for path in wanted:
            if path in self._looks:
                seen = self._looks[path]
                self._headers[path] = (seen.size, seen.cut_out) if isinstance(seen, Look) else seen
        self._read(_header, wanted, self._headers)
        return {path: self._headers[path] for path in wanted}

    def _read(self, read: Callable[[str], Seen | Refused], paths: list[str], known: dict[str, Seen | Refused]) -> None:
        missing = [path for path in paths if path not in known]
        with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
            for done, (path, seen) in enumerate(zip(missing, pool.map(read, missing), strict=True), 1):
                known[path] = seen
                if self.progress is not None:
                    self.progress(done, len(missing))


def _header(path: str) -> Header | Refused:
    try:
        return header(path)
    except Refused as refusal:
        return refusal


def _look(path: str) -> Look | Refused:
    """Reads and decodes a file, some 5 ms at 512 x 512; most of it outside Python's lock."""
    try:
        colours, opacity = layers(Path(path).read_bytes(), HIDDEN)
    except Refused as refusal:
        return refusal
    except OSError as error:
        return Refused(f"cannot be read: {error.strerror}; restore it or remove it from the folder")
    return look(colours, opacity)


def look(colours: Image, opacity: Image | None) -> Look:
    """The look of an RGB picture with its 8-bit alpha channel, None if opaque. `colours` is painted over."""
    import numpy as np
    from PIL.Image import Resampling

    factor = max(1, -(-max(colours.size) // SMALL))
    if opacity is None:
        figure_HW, shown = _on_plain(np.asarray(colours.reduce(factor))), 1.0
    else:
        figure_HW = np.asarray(opacity.reduce(factor)) >= 128
        shown = float(figure_HW.mean())
        colours.paste("white", mask=opacity.point(lambda value: 255 - value))
    figure = None if figure_HW is None or not figure_HW.any() else _figure(figure_HW)
    tiny = colours.resize((HASHED + 1, HASHED), Resampling.BOX)
    return Look(
        colours.size, opacity is not None, shown, figure, tiny.tobytes(), difference_hash(tiny.convert("L").tobytes())
    )


def _on_plain(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Which pixels are no background, if the upper border says that there is a plain one.

    The lower border is not asked: figures stand on it.
    """
    import numpy as np

    half = len(pixels_HWC) // 2
    border_NC = np.concatenate([pixels_HWC[0], pixels_HWC[:half, 0], pixels_HWC[:half, -1]]).astype(np.int16)
    colour_C = np.median(border_NC, axis=0)
    if (np.abs(border_NC - colour_C).max(axis=1) <= NEAR).mean() < PLAIN:
        return None
    distance_HW: NDArray[np.float64] = np.abs(pixels_HWC.astype(np.int16) - colour_C).max(axis=2)
    return distance_HW > NEAR


def _figure(figure_HW: NDArray[np.bool_]) -> Figure:
    import numpy as np

    rows, columns = np.flatnonzero(figure_HW.any(axis=1)), np.flatnonzero(figure_HW.any(axis=0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    counts = figure_HW.sum(axis=0)
    centre = (counts * (np.arange(len(counts)) + 0.5)).sum() / counts.sum() / len(counts)
    bottom, fill = (rows[-1] + 1) / len(figure_HW), counts.sum() / (width * height)
    return Figure(float(centre), float(bottom), float(width / height), float(fill))


def difference_hash(grey: Sequence[int]) -> int:
    """Krawetz's dHash ("Kind of Like That", 2013) of HASHED rows of HASHED + 1 grey values.

    A bit for each pair of neighbours in a row: whether the left one is brighter. The first pair is the highest bit.
    """
    bits = 0
    for start in range(0, len(grey), HASHED + 1):
        row = grey[start : start + HASHED + 1]
        for left, right in pairwise(row):
            bits = bits << 1 | (left > right)
    return bits
