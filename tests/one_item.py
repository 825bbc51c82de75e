"""Running a kind on one item, without an engine: for tests of what it makes."""

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

    def nothing(*_: object) -> None:
        return None

    everything = {port.encode(): data for port, data in {**blobs, **(shared or {})}.items()}
    return Work(
        params=params,
        hints=hints or {},
        items=[Item(0, name, {}, {port: port.encode() for port in blobs})],
        total=1,
        shared={port: port.encode() for port in shared or {}},
        columns={},
        read=everything.__getitem__,
        read_many=lambda asked: {digest: everything[digest] for digest in asked},
        open=everything.__getitem__,
        scratch=Path(),
        keep=nothing,
        kept=lambda _: None,
        cancelled=threading.Event(),
        progress=nothing,
        measure=nothing,
        warn=nothing,
    )
