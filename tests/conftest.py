"""Fixtures that several tests use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import make_project, save_base

os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `tests.tiny.save_base`."""
    path = tmp_path_factory.mktemp("base") / "tiny ベース.safetensors"
    save_base(path)
    return path


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """`project("a")` makes a folder with pictures and a recipe; see `tests.tiny.make_project`."""
    return lambda name="project": make_project(tmp_path / name, tiny_base)
