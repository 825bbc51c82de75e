"""What a kind's `run` gets, without an engine: for tests of what it makes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorac.engine.protocol import Item, Work


def work(
    params: Mapping[str, Any],
    blobs: Mapping[str, bytes],
    shared: Mapping[str, bytes] | None = None,
    *,
    name: str = "a.png",
    hints: Mapping[str, Any] | None = None,
) -> Work:
    """One item whose ports are the names of `blobs`; a digest is the name of its port."""
    everything = {port.encode(): data for port, data in {**blobs, **(shared or {})}.items()}
    return of_blobs(
        everything,
        params=params,
        hints=hints or {},
        items=[Item(0, name, {}, {port: port.encode() for port in blobs})],
        shared={port: port.encode() for port in shared or {}},
    )


def of_blobs(blobs: Mapping[bytes, bytes], **more: Any) -> Work:
    """Work on whatever `more` says; digests are the names of the blobs."""

    def nothing(*_: object) -> None:
        return None

    arguments: dict[str, Any] = {
        "params": {},
        "hints": {},
        "items": [],
        "total": 1,
        "shared": {},
        "columns": {},
        "read": blobs.__getitem__,
        "read_many": lambda digests: {digest: blobs[digest] for digest in digests},
        "open": blobs.__getitem__,
        "scratch": Path(),
        "keep": nothing,
        "kept": nothing,
        "cancelled": threading.Event(),
        "progress": nothing,
        "measure": nothing,
        "warn": nothing,
    }
    return Work(**(arguments | more))
