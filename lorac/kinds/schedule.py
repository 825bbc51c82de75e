"""Tokens, buckets and settings become the whole training run as data, cut where a LoRA is saved.

Each slice is an item of its own, so that training goes on from the last slice that two runs have in common. `summary`
and `validation`, a slice of the steps that measure the held-out pictures, are the same for every item.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from lorac.digest import Digest
from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import Problem
from lorac.graph.nodes import Shape
from lorac.recipe.arithmetic import nothing_held_out

if TYPE_CHECKING:
    from lorac.train.schedule import Item, Subset, Variant

NAME = "schedule"
VERSION = 3
SHAPE = Shape.LIST
POOL = "cpu"
OUTPUTS = ("slice", "summary", "validation")


def run(work: Work) -> Iterable[Made | Failed]:
    from lorac.train.schedule import Schedule, Settings
    from lorac.train.slices import encode

    params = work.params
    schedule = Schedule(
        [_subset(work, number, **subset) for number, subset in enumerate(params["subsets"])],
        Settings(**_settings(params)),
        _items(work, len(params["subsets"])),
    )
    if schedule.settings.split and not schedule.held_out:
        yield Failed(0, [_nothing_held_out(schedule.settings.split, params["subsets"], work)])
        return
    summary = json.dumps(asdict(schedule.summary), sort_keys=True).encode()
    validation = encode(schedule.validation())
    done = 0
    for index, part in enumerate(schedule.slices()):
        yield Made(index, {"slice": encode(part), "summary": summary, "validation": validation})
        done += len(part)
        work.progress(done, schedule.summary.steps, "steps")


def _nothing_held_out(split: float, subsets: Sequence[Mapping[str, Any]], work: Work) -> Problem:
    counts = [len(work.columns[f"bucket.{i}"]) for i, subset in enumerate(subsets) if not subset["regularisation"]]
    cause, _, remedy = nothing_held_out(split, max(counts)).partition("; ")
    return Problem("split in [validation]", cause, remedy)


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Settings`: the recipe's sections without their names, and what lowering derived."""
    from lorac.train.schedule import Settings

    sections = {name: value for part in params.values() if isinstance(part, Mapping) for name, value in part.items()}
    known = {name: value for name, value in sections.items() if name in Settings.__dataclass_fields__}
    derived = ("lr_unet", "lr_text", "validation_seed")
    return {**known, **{name: params[name] for name in derived if name in params}}


def _subset(work: Work, number: int, repeats: int, regularisation: bool) -> Subset:
    from lorac.train.schedule import Subset

    return Subset(repeats, regularisation, _items(work, number))


def _items(work: Work, number: int) -> list[Item]:
    """The pictures of a set. That behind all subsets is the held-out one; without it there are none."""
    from lorac.train.schedule import Item

    buckets, tokens = (work.columns.get(f"{port}.{number}", ()) for port in ("bucket", "tokens"))
    blobs = work.read_many([*buckets, *tokens])
    known: dict[Digest, Item] = {}
    items = []
    for bucket, token in zip(buckets, tokens, strict=True):
        pair = bucket + token
        if pair not in known:
            width, height = blobs[bucket].split(b"x")
            known[pair] = Item((int(width), int(height)), read_tokens(blobs[token]))
        items.append(known[pair])
    return items


_Tags = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class _Lines(msgspec.Struct):
    lines: tuple[tuple[tuple[int | None, int, _Tags], ...], ...]


_decode = msgspec.json.Decoder(_Tags | _Lines).decode


def read_tokens(blob: bytes) -> list[list[Variant]]:
    """The lines of what the kind `tokens` wrote, each with its variants."""
    from lorac.train.schedule import Variant

    found = _decode(blob)
    lines = found.lines if isinstance(found, _Lines) else (((None, 0, found),),)
    return [
        [Variant([tag[0] for tag in tags], [tag[1] for tag in tags], start, end) for start, end, tags in line]
        for line in lines
    ]
