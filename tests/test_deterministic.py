"""`deterministic = true`: torch's settings are so within a training and as before behind it; on a card, equal bits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import deterministic as memory

from lorac.engine.protocol import Made
from lorac.graph.nodes import Input, Node
from lorac.kinds import train
from lorac.train.deterministic import WORKSPACE, deterministic
from tests.gang_bench import Bench, Recipe


def settings() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        memory.fill_uninitialized_memory,  # type: ignore[attr-defined]
        os.environ.get(WORKSPACE),
    )


WITHIN = (True, False, False, False, ":4096:8")


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings that are not torch's own, so that to go back to those would be seen."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.usefixtures("others")
def test_settings_hold_within_and_are_as_before_behind() -> None:
    before = settings()
    with deterministic(True):
        assert settings() == WITHIN
    assert settings() == before == (True, True, True, True, None)
    with pytest.raises(ZeroDivisionError), deterministic(True):
        _ = 1 // 0
    assert settings() == before
    with deterministic(False):
        assert settings() == before


def test_a_workspace_that_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


class Watched(Recipe):
    """A recipe that says whether it is deterministic."""

    wanted = True

    @property
    def params(self) -> dict[str, Any]:
        return super().params | ({"deterministic": "sdpa"} if self.wanted else {})


class Unwatched(Watched):
    wanted = False


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", [Watched, Unwatched])
def test_a_training_has_them_and_nothing_behind_it(tmp_path: Path, kind: type[Watched], together: bool) -> None:
    """They are looked at where a step reports itself, in what the kind `train` runs."""
    seen: list[tuple[object, ...]] = []

    def look(*_: object) -> None:
        seen.append(settings())

    before, bench = settings(), Bench(tmp_path)
    if together:
        bench.together(kind(4, steps=2), kind(4, steps=2, seed=1), more=lambda number: {"progress": look})
    else:
        (made,) = train.run(bench.work(0, kind(4, steps=2), 0, None, progress=look))
        assert isinstance(made, Made)
    assert set(seen) == {WITHIN if kind.wanted else before}
    assert settings() == before


def test_what_is_deterministic_is_no_gang_with_what_is_not() -> None:
    base = Node("b", "weights", {})

    def group(**more: Any) -> object:
        params = {**Recipe(4).params, **more.pop("params", {})}
        return train.gang_group(Node("t", "train", params, {p: Input(base, p) for p in ("unet", "text")}, **more))

    plain = group()
    assert plain == group() != group(params={"deterministic": "sdpa"})
    assert plain != group(hints={"attention": "math"})


def test_bits_are_equal_on_a_cpu_without(tmp_path: Path) -> None:
    assert digest(tmp_path / "a", Unwatched, 3) == digest(tmp_path / "b", Watched, 3)


@pytest.mark.gpu
def test_bits_are_equal_on_a_card(tmp_path: Path) -> None:
    assert digest(tmp_path / "a", Watched) == digest(tmp_path / "b", Watched)


def digest(folder: Path, kind: type[Watched], steps: int = 12) -> str:
    """Of the LoRA, the optimiser's moments and the losses after some steps of two sizes, in passes of 2 samples."""
    recipe = kind(4, steps=steps, batch=2, sizes=((8, 8), (8, 16)))
    (made,) = train.run(Bench(folder).work(0, recipe, 0, None))
    assert isinstance(made, Made)
    parts = [made.outputs[name] for name in ("lora", "moments", "losses")]
    data = b"".join(part if isinstance(part, bytes) else part.read_bytes() for part in parts)
    return hashlib.sha256(data).hexdigest()
