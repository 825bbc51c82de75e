"""Rules about picture files: transparency, copies, size and shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from lorac.check.material import Material, Placed, counted
from lorac.check.rule import Found
from lorac.dataset import Folder
from lorac.kinds.image import Refused
from lorac.listing import Picture, pictures, shown_path

ENLARGED = 1.5
"""More than so many times the size, a picture is visibly blurred by enlarging."""
CROPPED = 0.25
"""Share of a picture's area that may be cropped away."""


def no_background(material: Material) -> Found:
    """L008 undecided-alpha: transparent parts, and nothing said of what is behind them

    Why: A file has some colour under its transparent pixels, often black, and a tagger sees white there. A build
    refuses to choose; sd-scripts trains the hidden colours.

    Before:
        [[source]]
        path = "images/riho_head"

    After:
        [[source]]
        path = "images/riho_head"
        alpha = "white"

    Remedy: Set alpha to a colour, or to "drop" for the hidden ones.
    """
    for folder in material.sets:
        if folder.spec.alpha is None and folder.pictures:
            paths = [captioned.picture.path for captioned in folder.pictures]
            found = list(material.transparent(folder))
            if found:
                text = f"{len(found)} of {len(paths)} pictures have transparent parts, first {shown_path(found[0])}"
                yield folder.spec.where, f'{text}; say what is behind them, as alpha = "white"'


def unusable(material: Material) -> Found:
    """L013 unusable-picture: a picture that cannot be opened

    Why: A build refuses it, and other trainers stop hours into a run. Training pictures are decoded here, of
    regularisation pictures the headers are read.

    Before:
        riho_07.png: a page of HTML, saved by mistake

    After:
        riho_07.png: a picture

    Remedy: Restore the file, convert it to 8-bit RGB, or remove it.
    """
    for path, seen in material.headers.items():
        if isinstance(seen, Refused):
            yield shown_path(path), f"the picture {seen}"


def duplicates(material: Material) -> Found:
    """L024 duplicate-picture: two training pictures are the same, or nearly

    Why: A picture that is there twice counts twice. The LoRA learns it by heart, pose and background included, and
    held out copies make validation look better than it is. Compared are difference hashes of 16 x 16 bits and the
    colours of tiny versions, so that another expression in the same pose is no copy.

    Before:
        riho_01.png
        riho_01 (copy).jpg

    After:
        riho_01.png

    Remedy: Remove one of them; to weigh a picture more, use repeats.
    """
    seen = list(material.looks.items())
    for number, (path, look) in enumerate(seen):
        first = next((other for other, known in seen[:number] if look.copies(known)), None)
        if first is not None and not look.empty:
            yield shown_path(path), f"the picture is nearly the same as {shown_path(first)}; remove one of them"


def enlarged(material: Material) -> Found:
    """L025 enlarged-picture: pictures much smaller than the training resolution

    Why: A small picture is enlarged to fill its bucket, and the blur is learnt as her style.

    Before:
        [train]
        resolution = 512
        riho_01.png: 200 x 220 pixels

    After:
        [train]
        bucket_no_upscale = true

    Remedy: Take larger pictures, or set train.bucket_no_upscale.
    """
    for folder in material.sources:
        found = [(path, placed) for path, placed in _placed(material, folder) if _factor(placed) > ENLARGED]
        if found:
            path, placed = max(found, key=lambda pair: _factor(pair[1]))
            size, scaled = ("x".join(map(str, size)) for size in (placed.size, placed.scaled))
            many = f"{len(found)} of {counted(len(folder.pictures), 'picture')}"
            text = f"{many} are enlarged more than {ENLARGED:g} times, {shown_path(path)} from {size} to {scaled}"
            yield folder.spec.where, f"{text}; take larger ones, or set bucket_no_upscale"


def _factor(placed: Placed) -> float:
    return placed.scaled[0] / placed.size[0]


def cropped(material: Material) -> Found:
    """L026 cropped-picture: a large part of a picture is cut off

    Why: A picture is scaled to cover its bucket, and what sticks out is cropped. In tall pictures that takes the head
    or the feet, and a LoRA of cropped figures draws cropped figures.

    Before:
        [train]
        enable_bucket = false

    After:
        [train]
        enable_bucket = true

    Remedy: Leave train.enable_bucket on, widen min_bucket_reso and max_bucket_reso, or crop by hand.
    """
    for folder in material.sources:
        found = [(path, placed) for path, placed in _placed(material, folder) if _lost(placed) > CROPPED]
        if found:
            path, placed = max(found, key=lambda pair: _lost(pair[1]))
            many = f"{len(found)} of {counted(len(folder.pictures), 'picture')}"
            text = f"{many} lose more than {CROPPED:.0%} to cropping, {shown_path(path)} {_lost(placed):.0%}"
            remedy = "crop by hand" if material.recipe.train.enable_bucket else "set enable_bucket = true"
            yield folder.spec.where, f"{text}; {remedy}"


def _lost(placed: Placed) -> float:
    """The share of a picture that is cropped away."""
    return 1 - placed.bucket[0] * placed.bucket[1] / (placed.scaled[0] * placed.scaled[1])


def _placed(material: Material, folder: Folder) -> Iterator[tuple[str, Placed]]:
    for captioned in folder.pictures:
        if placed := material.placed.get(captioned.picture.path):
            yield captioned.picture.path, placed


def mixed_roles(material: Material) -> Found:
    """L037 picture-in-two-roles: a training picture is also regularisation or held out

    Why: As a regularisation picture it teaches that the class looks like her, against what the source teaches. As a
    held out picture it makes the validation loss a training loss, which over-fitting does not raise.

    Before:
        images/riho/07.png
        images/riho_held_out/07.png

    After:
        images/riho_held_out/07.png

    Remedy: Take the picture out of one of the two folders.
    """
    recipe = material.recipe
    groups = [("regularisation", f.spec.where, [c.picture for c in f.pictures]) for f in material.regularisation]
    if recipe.validation.path is not None:
        where = recipe.where("validation.path")
        groups.append(("validation", where, pictures(recipe.validation.path, recipe.caption.extension, where)))
    own: dict[int, list[Picture]] = defaultdict(list)
    for captioned in material.pictures:
        own[captioned.picture.stat.st_size].append(captioned.picture)
    for role, where, others in groups:
        found = [p for p in others if any(_same_bytes(p, mine) for mine in own[p.stat.st_size])]
        if found:
            many = f"{len(found)} of {counted(len(others), f'{role} picture')}"
            text = f"{many} are training pictures, too, first {shown_path(found[0].path)}; take them out of one place"
            yield where, text


def _same_bytes(one: Picture, other: Picture) -> bool:
    try:
        return one.path == other.path or _digest(one.path) == _digest(other.path)
    except OSError:
        return False


def _digest(path: str) -> bytes:
    return sha256(Path(path).read_bytes()).digest()
