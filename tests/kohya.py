"""Folders as kohya's users have them: the article's four sets, small."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

# set: (repeats, folder's name, pictures, trigger in the captions), steps of the article
ARTICLE: dict[str, tuple[list[tuple[str, int, str]], int]] = {
    "head": ([("36_riho", 13, "izumi riho")], 2808),
    "maruzen": (
        [("16_kk_dancer", 10, "kkdancer"), ("16_riho_cloth", 9, "rihocloth"), ("16_izumi_riho", 13, "izumi riho")],
        3072,
    ),
    "fullbody": ([("25_izumi_riho", 21, "izumi riho")], 3150),
    "multicloth": (
        [
            ("10_izumi_riho", 21, "izumi riho"),
            ("10_riho_dancer", 12, "kkdancer"),
            ("10_riho_def_cloth", 12, "rihocloth"),
            ("10_riho_mizugi", 12, "rihomizugi"),
        ],
        3420,
    ),
}


def pictures(
    folder: Path, count: int, trigger: str = "", *, clear: bool = False, extension: str = ".txt", side: int = 8
) -> None:
    """Pictures 000.png … of one colour, transparent if `clear`; with captions if there is a trigger."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = folder / f"{number:03}.png"
        Image.new("RGBA" if clear else "RGB", (side, side), (number % 256, 1, 2, 0) if clear else (1, 2, 3)).save(name)
        if trigger:
            name.with_suffix(extension).write_text(f"{trigger}, smile, thing {number}\n", encoding="utf-8")


def article_set(folder: Path, name: str, *, extension: str = ".txt") -> int:
    """The folders of one of the article's sets; its steps."""
    folders, steps = ARTICLE[name]
    for sub, count, trigger in folders:
        pictures(folder / sub, count, trigger, clear=name in ("head", "maruzen"), extension=extension)
    return steps
