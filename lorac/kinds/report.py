"""Everything a build made, on one page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape
from lorac.kinds.image import read_ppm

if TYPE_CHECKING:
    from lorac.report.page import Picture
    from lorac.train.slices import Slice

NAME = "report"
VERSION = 3
SHAPE = Shape.ONE
POOL = "cpu"
OUTPUTS = ("html",)

THUMBNAIL = 160
"""Pixels of the longer side."""


def run(work: Work) -> Iterable[Made | Failed]:
    from lorac.report.page import Folder, Report, Row, page
    from lorac.train.slices import decode

    params = work.params
    slices = [decode(work.read(digest)) for digest in work.columns["slice"]]
    targets = params["settings"]["network"]["targets"]
    report = Report(
        name=params["name"],
        recipe_file=params["recipe"],
        comment=params["comment"],
        settings=params["settings"],
        folders=[
            Folder(folder["name"], folder["repeats"], folder["regularisation"], len(work.columns[f"name.{number}"]))
            for number, folder in enumerate(params["folders"])
        ],
        pictures=[picture for number in range(len(params["folders"])) for picture in _pictures(work, number)],
        rows=[
            Row(prompt["prompt"], prompt["negative"], row)
            for prompt, row in zip(params["prompts"], _rows(work), strict=True)
        ],
        strengths=params["strengths"] if params["prompts"] else (),
        losses=[loss for digest in work.columns["losses"] for loss in _losses(work.read(digest))],
        unet_lr=[rate for part in slices for rate in part.lr_unet] if "unet" in targets else (),
        text_lr=[rate for part in slices for rate in part.lr_text] if "text_encoder" in targets else (),
        epoch_ends=[part.first_step + len(part) for part in slices],
        regularisation_steps=_regularisation_steps(work, slices),
        validation=[json.loads(work.read(digest)) for digest in work.columns.get("validation", ())],
        summary=_summary(work),
    )
    yield Made(0, {"html": page(report)})


def _rows(work: Work) -> Iterable[bytes]:
    """Of each prompt a strip: the first picture without the LoRA, then the one at each strength."""
    from lorac.sheet import joined, opened

    with_lora, each = work.columns.get("first", ()), len(work.params["strengths"]) - 1
    for number, off in enumerate(work.columns.get("off_first", ())):
        shown = [off, *with_lora[number * each : (number + 1) * each]]
        yield joined([opened(work.read(digest)) for digest in shown])


def _pictures(work: Work, number: int) -> Iterable[Picture]:
    """The pictures of one folder: all training pictures, whose tags are counted, with thumbnails of those shown."""
    from lorac.report.page import Picture
    from lorac.report.pictures import MOST_PICTURES, MOST_REGULARISATION

    folder = work.params["folders"][number]
    most = MOST_REGULARISATION if folder["regularisation"] else MOST_PICTURES
    end = most if folder["regularisation"] else None
    names, captions, pixels = (work.columns[f"{port}.{number}"][:end] for port in ("name", "caption", "pixels"))
    texts = work.read_many([*names, *captions])
    for index, (name, caption) in enumerate(zip(names, captions, strict=True)):
        width, height, thumbnail = _thumbnail(work.read(pixels[index])) if index < most else (0, 0, b"")
        shown, text = texts[name].decode("utf-8", "replace"), texts[caption].decode()
        yield Picture(folder["name"], shown, text, width, height, thumbnail, folder["regularisation"])


def _thumbnail(ppm: bytes) -> tuple[int, int, bytes]:
    """(width, height of the training picture, a small PNG of it)."""
    from PIL import Image

    width, height, rgb = read_ppm(ppm)
    image = Image.frombytes("RGB", (width, height), bytes(rgb))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return width, height, buffer.getvalue()


def _regularisation_steps(work: Work, slices: list[Slice]) -> list[bool]:
    """For each step whether it showed a regularisation picture; nothing when batches mix both."""
    kinds = [
        folder["regularisation"]
        for number, folder in enumerate(work.params["folders"])
        for _ in work.columns[f"name.{number}"]
    ]
    if any(size != 1 for part in slices for size in (*part.size, *part.batches)) or not any(kinds):
        return []
    return [kinds[item] for part in slices for item in part.item]


def _summary(work: Work) -> dict[str, int | float]:
    summary = json.loads(work.read(work.columns["summary"][0]))
    views = [
        count
        for count, folder in zip(summary["views"], work.params["folders"], strict=True)
        if not folder["regularisation"]
    ]
    figures = {
        "steps": summary["steps"],
        "epochs": summary["epochs"],
        "steps per epoch": summary["batches_per_epoch"],
        "training samples per epoch": summary["train_samples"],
        "regularisation samples per epoch": summary["regularisation_samples"],
        "truncated captions": summary["truncated_captions"],
    }
    return {**figures, **({"views of each picture": views[0]} if len(set(views)) == 1 else {})}


def _losses(data: bytes) -> list[float]:
    """The losses of one link, one for each step."""
    from array import array

    values = array("f")
    values.frombytes(data)
    return values.tolist()
