"""Everything a build made, on one page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from lorac.captions import normal
from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape
from lorac.kinds.image import from_ppm
from lorac.wildcards import all_tags

if TYPE_CHECKING:
    from lorac.evaluate.figures import Figures
    from lorac.report.page import LeftOut, Outline, Picture, Row, Table
    from lorac.train.slices import Slice

NAME = "report"
VERSION = 6
SHAPE = Shape.ONE
POOL = "cpu"
OUTPUTS = ("html",)


def run(work: Work) -> Iterable[Made | Failed]:
    """The page. Ports that are there only if the recipe has them: `off` and `sheet` (the sheets of `draw[off]` and of
    `draw`, prompts by strengths), `figures` (of `evaluate`), `validation`.
    """
    from lorac.report.page import Folder, Report, page
    from lorac.train.slices import decode

    params = work.params
    slices = [decode(work.read(digest)) for digest in work.columns["slice"]]
    targets = params["settings"]["network"]["targets"]
    report = Report(
        name=params["name"],
        recipe_file=params["recipe"],
        comment=params["comment"],
        recipe=list(_recipe(params)),
        folders=[
            Folder(folder["name"], folder["repeats"], folder["regularisation"], len(work.columns[f"name.{number}"]))
            for number, folder in enumerate(params["folders"])
        ],
        pictures=[picture for number in range(len(params["folders"])) for picture in _pictures(work, number)],
        left_out=left_out(work),
        rows=list(_rows(work)),
        strengths=params["strengths"] if params["prompts"] else (),
        figures=_figures(work),
        losses=[loss for digest in work.columns["losses"] for loss in losses(work.read(digest))],
        unet_lr=[rate for part in slices for rate in part.lr_unet] if "unet" in targets else (),
        text_lr=[rate for part in slices for rate in part.lr_text] if "text_encoder" in targets else (),
        epoch_ends=[part.first_step + len(part) for part in slices],
        regularisation_steps=_regularisation_steps(work, slices),
        validation=[json.loads(work.read(digest)) for digest in work.columns.get("validation", ())],
        outline=_outline(work),
        summary=_summary(work),
    )
    yield Made(0, {"html": page(report)})


def _recipe(params: Mapping[str, Any]) -> Iterator[Table]:
    """The recipe's tables, and which of their keys have their default."""
    from lorac.recipe.schema import SECTIONS
    from lorac.report.page import Table
    from lorac.report.recipe import SET_DEFAULTS

    for folder, written in zip(params["folders"], params["sets"], strict=True):
        usual = frozenset(key for key, value in written.items() if SET_DEFAULTS.get(key, ...) == value)
        yield Table("[[regularisation]]" if folder["regularisation"] else "[[source]]", written, usual)
    for name, values in params["settings"].items():
        defaults = msgspec.to_builtins(SECTIONS[name]())
        # Through JSON, because a tuple is no list.
        same = json.loads(json.dumps(defaults)), json.loads(json.dumps(values))
        yield Table(f"[{name}]", values, frozenset(key for key in values if same[0].get(key, ...) == same[1][key]))


def _figures(work: Work) -> Figures | None:
    from lorac.evaluate.figures import decode

    return decode(work.read(work.shared["figures"])) if "figures" in work.shared else None


def _rows(work: Work) -> Iterator[Row]:
    """Of each prompt the pictures without the LoRA, then those at each strength."""
    from lorac.report.page import Row
    from lorac.report.thumbnails import LARGE, SMALL, webp
    from lorac.sheet import parted

    params = work.params
    each = len(params["strengths"]) - 1
    without, drawn = work.columns.get("off", ()), work.columns.get("sheet", ())
    for number, (prompt, off) in enumerate(zip(params["prompts"], without, strict=True)):
        shown = [off, *drawn[number * each : (number + 1) * each]]
        sheets = [parted(work.read(digest), params["count"]) for digest in shown]
        small = [[webp(picture, SMALL) for picture in sheet] for sheet in sheets] if params["count"] > 1 else []
        yield Row(prompt["prompt"], prompt["negative"], [webp(sheet[0], LARGE) for sheet in sheets], small)


def _pictures(work: Work, number: int) -> Iterator[Picture]:
    """The pictures of one folder: all training pictures, whose tags are counted, with thumbnails of those shown."""
    from lorac.report.page import Picture
    from lorac.report.pictures import MOST_PICTURES, MOST_REGULARISATION
    from lorac.report.thumbnails import LARGE, webp

    folder = work.params["folders"][number]
    most = MOST_REGULARISATION if folder["regularisation"] else MOST_PICTURES
    end = most if folder["regularisation"] else None
    names, captions, pixels = (work.columns[f"{port}.{number}"][:end] for port in ("name", "caption", "pixels"))
    texts = work.read_many([*names, *captions])
    for index, (name, caption) in enumerate(zip(names, captions, strict=True)):
        width, height, thumbnail = 0, 0, b""
        if index < most:
            image = from_ppm(work.read(pixels[index]))
            width, height, thumbnail = image.width, image.height, webp(image, LARGE)
        shown, text = texts[name].decode("utf-8", "replace"), texts[caption].decode()
        tags = _tags(work, text)
        yield Picture(folder["name"], shown, text, tags, width, height, thumbnail, folder["regularisation"])


def _tags(work: Work, text: str) -> tuple[str, ...]:
    """The tags of a text: those of all its lines and choices, if the recipe allows such."""
    settings = work.params["settings"]["caption"]
    return all_tags(text, settings["keep_tokens_separator"], settings["enable_wildcard"])


def left_out(work: Work) -> Sequence[LeftOut]:
    """The tags of the training pictures' texts that the rules took away, the most frequent first."""
    from lorac.report.page import LeftOut

    counts: Counter[str] = Counter()
    for number, folder in enumerate(work.params["folders"]):
        if folder["regularisation"]:
            continue
        pairs = list(zip(work.columns[f"raw.{number}"], work.columns[f"caption.{number}"], strict=True))
        texts = work.read_many([digest for pair in pairs for digest in pair])
        for raw, final in pairs:
            kept = {tag.casefold() for tag in _tags(work, texts[final].decode())}
            counts.update(tag for tag in _tags(work, texts[raw].decode()) if tag.casefold() not in kept)
    replace = work.params["settings"]["caption"]["replace"]
    becomes = {normal(old).casefold(): new for old, new in replace.items()}
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [LeftOut(tag, count, becomes.get(tag.casefold(), "")) for tag, count in order]


def _outline(work: Work) -> Outline:
    """The graph by kinds, with the numbers of their items as far as this node sees them."""
    from lorac.report.page import Outline

    params = work.params
    found = Counter({"source": 0, "generate": 0})
    for number, written in enumerate(params["sets"]):
        found["generate" if "generate" in written else "source"] += len(work.columns[f"name.{number}"])
    pictures = found.total()
    saved = len(work.columns["slice"])
    drawn = sum(len(work.columns.get(port, ())) for port in ("off", "sheet"))
    of_pictures = dict.fromkeys(("image", "caption", "tokens", "latent"), pictures)
    of_files = dict.fromkeys(("schedule", "train", "export", "validate"), saved)
    found.update({**of_pictures, **of_files, "draw": drawn})
    return Outline(params["graph"], {kind: count for kind, count in found.items() if kind in params["graph"]})


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


def losses(data: bytes) -> list[float]:
    """The losses of one link, one for each step."""
    from array import array

    values = array("f")
    values.frombytes(data)
    return values.tolist()
