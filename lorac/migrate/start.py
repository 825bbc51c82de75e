"""`lorac init`: a first recipe for a folder of pictures, after a look at them."""

from __future__ import annotations

import re
from pathlib import Path

from lorac.captions import split_tags
from lorac.errors import InputError, Problem
from lorac.listing import exists, shown_path
from lorac.migrate.draft import Draft, Entry
from lorac.migrate.importing import import_path
from lorac.migrate.look import Look, look
from lorac.migrate.pictures import seen_extension
from lorac.migrate.settle import settle
from lorac.recipe.base import base_facts
from lorac.recipe.diagnostics import missing_path_remedy
from lorac.recipe.fields import BUILTIN_BASE, BUILTIN_TAGGER
from lorac.words import BINDING

STEPS, FEWEST, SHOWN = 2000, 1500, 200
"""Steps aimed at and fewest; samples of an epoch aimed at, so that a run has some ten epochs to choose from."""
REAL = 512
"""The side of SD 1.x checkpoints' pictures. The proposed base is the small one, whose side is less."""
_NUMBERED = re.compile(r"\d+_.*")


def start(folder: Path, out: Path | None) -> Draft:
    """The recipe for the pictures in `folder`; a kohya training folder is imported. Raises InputError."""
    if not exists(folder):
        raise InputError([Problem("", f'"{shown_path(folder)}" does not exist', missing_path_remedy(folder))])
    if not folder.is_dir():
        raise InputError([Problem(shown_path(folder), "is no folder", "give the folder of your pictures")])
    if any(entry.is_dir() and _NUMBERED.fullmatch(entry.name) for entry in folder.iterdir()):
        return import_path(folder, None, out)
    extension = seen_extension([folder])
    seen = look(folder, extension, thorough=True)
    draft = Draft(Path.cwd() if out is None else out.absolute().parent, folder.absolute())
    draft.head = [
        f"A first recipe for the {seen.count} pictures in {folder.absolute().name}, by `lorac init`. Then: `check`",
        "it, `plan` it, `build` it. A key that is not here has its default: see `lorac schema`.",
    ]
    draft.preset = Entry("modern", "today's usual settings; each can be changed below")
    trigger, why = _trigger(folder, seen)
    repeats, epochs = lengths(seen.count)
    _source(draft, folder, seen, repeats, trigger, why)
    _caption(draft, seen, extension)
    draft.put("network", "dim", 16, "rank: how much the LoRA can hold; 8 to 32 for a character")
    _train(draft, seen, repeats, epochs)
    scene = ["looking at viewer, simple background", "upper body, smile, outdoors", "full body, standing"]
    draft.put("sample", "prompts", [f"1girl, {trigger}, {words}" for words in scene], "drawn at the end")
    draft.put("sample", "cfg_scale", 4, "the small base wants less guidance than the 7 that a real one wants")
    settle(draft)
    return draft


def lengths(count: int) -> tuple[int, int]:
    """Repeats and epochs for so many pictures: 1500 to 3000 steps, unless there are more than 3000 pictures."""
    repeats = max(1, round(SHOWN / count))
    epochs = max(1, round(STEPS / (count * repeats)))
    return repeats, epochs + (count * repeats * epochs < FEWEST)


def _trigger(folder: Path, seen: Look) -> tuple[str, str]:
    if seen.common is not None and seen.captioned == len(seen.captions):
        return seen.common, f"all {seen.captioned} captions begin with it"
    name = folder.absolute().name
    name = name.partition("_")[2] if _NUMBERED.fullmatch(name) else name  # kohya's 36_riho
    words = " ".join(split_tags(name.replace(",", " ")))
    return words or "trigger", "the folder's name; take a word that the base does not know yet"


def _source(draft: Draft, folder: Path, seen: Look, repeats: int, trigger: str, why: str) -> None:
    table = {"path": Entry(draft.relative(folder.absolute()))}
    table["repeats"] = Entry(repeats, f"an epoch shows each picture {repeats} times")
    table["trigger"] = Entry([trigger], why)
    if seen.transparent:
        how_many = f"{seen.transparent} of {seen.count} pictures are transparent"
        table["alpha"] = Entry("white", f'{how_many}; what lies behind: a colour as "#rrggbb", or "drop"')
    draft.sources.append(table)
    draft.remarks["source"] = [
        "Ordinary pictures of the class keep the LoRA from taking every girl for this one, and heads without a body",
        "away; they double the steps. Take the # off and give their folder:",
        "[[regularisation]]",
        'path = "1girl"',
        'caption = "1girl"',
    ]


def _caption(draft: Draft, seen: Look, extension: str) -> None:
    if extension != ".txt":
        draft.put("caption", "extension", extension)
    met = {tag.casefold() for tags in seen.captions for tag in tags}
    # They would take what the trigger shall mean (`lorac check`, L003).
    exclude = [tag for tag in BINDING if tag != "1boy" or tag in met]
    draft.put("caption", "exclude", exclude, "left in, they would take what the trigger shall mean")
    draft.put("caption", "shuffle_caption", True, "all but the trigger, so that the order of tags means nothing")
    draft.put("caption", "keep_tokens", 1, "the trigger stays in front")
    if seen.captioned < seen.count:
        missing = f"{seen.count - seen.captioned} of {seen.count} pictures have no {extension} file"
        draft.put("tagger", "model", BUILTIN_TAGGER, f"{missing}: it tags them")
        draft.remarks["tagger"] = [
            "The small tagger knows drawn figures only. For real pictures give a folder with model.onnx and",
            'selected_tags.csv of a WD14 tagger, such as SmilingWolf\'s wd-v1-4-convnext-tagger-v2: model = "wd14"',
        ]


def _train(draft: Draft, seen: Look, repeats: int, epochs: int) -> None:
    steps = seen.count * repeats * epochs
    draft.put("train", "base", BUILTIN_BASE, "for real pictures the path of an SD 1.x checkpoint")
    draft.put("train", "epochs", epochs, f"{seen.count} x {repeats} x {epochs} = {steps} steps of one picture")
    side = base_facts(BUILTIN_BASE, "").resolution
    if small := _smaller(seen, side):
        width, height = min(seen.sizes, key=lambda size: size[0] * size[1])
        text = f"{small} (the smallest has {width} x {height})"
        draft.warnings.append(f"{text}; take larger ones, or see bucket_no_upscale in the recipe")
    if small := _smaller(seen, REAL):
        draft.remarks["train"] = [
            f"{small} and would be",
            "enlarged on a real base, which blurs; this trains them at their own size:",
            "bucket_no_upscale = true",
        ]


def _smaller(seen: Look, side: int) -> str:
    """How many pictures are smaller than a square of this side, in words; nothing for none."""
    small = sum(width * height < side * side for width, height in seen.sizes)
    return f"{small} of {seen.count} pictures have fewer pixels than {side} x {side}" if small else ""
