"""Fixtures that several tests use."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.running import lorac
from tests.tiny import make_project, save_base

os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two workers whose threads spin on two cores stall each other


def pytest_configure(config: pytest.Config) -> None:
    """Triton reads this at its import, so it holds for a whole process: by its interpreter, but for tests of a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


settings.register_profile("lorac", deadline=None)  # machines here are noisy
settings.load_profile("lorac")


@pytest.fixture(scope="module", autouse=True)
def _what_is_loaded_stays() -> None:
    """The cycle collector, which every training calls, need not walk through all modules and tests again and again:
    through half a million objects, that was a quarter of all time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where Triton's kernels run: compiled on a card, else interpreted, with the gate opened for tensors of a CPU."""
    pytest.importorskip("triton")
    if request.param == "cpu":
        from lorac.kernels import gate

        from tests.kernels import hasten_interpreter, watch_bounds

        monkeypatch.setattr(
            gate, "opens", lambda x, operation="": operation not in gate.UNUSED and x.dtype in gate.DTYPES
        )
        hasten_interpreter(monkeypatch)
        watch_bounds(monkeypatch)
    return str(request.param)


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


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A project that has been built once, for `built_copy` and for tests that only read."""
    folder = make_project(tmp_path_factory.mktemp("built") / "日本語 フォルダ", tiny_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = lorac("build", "recipe.toml")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def built_copy(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project, with its store and outputs, as the working directory."""
    folder = tmp_path / built.name
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    return folder
