"""What a prediction for a card counts beside the tensors of a pass, and a simulation of the pool of graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.pool import MIB, Pool
from lorac.sd.lora_settings import NetworkSettings
from lorac.train.memory.blas import ENVIRONMENT, workspace
from lorac.train.memory.predict import predict
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import Sizes, factors, ranks

USUAL = 4096 * 1024 * 2 + 16 * 1024 * 8
"""As torch's source has it."""


@pytest.mark.parametrize(
    ("capability", "config", "size"),
    [
        (None, None, USUAL),
        ((7, 5), None, USUAL),
        ((8, 9), None, USUAL),
        ((9, 0), None, 32 * MIB),
        ((12, 0), None, 32 * MIB),
        ((7, 5), ":4096:8", 32 * MIB),
        ((9, 0), ":16:8", 2**17),
        ((9, 0), ":4096:2:16:8", USUAL),
        ((8, 0), "nonsense", USUAL),
    ],
)
def test_the_workspace_of_cublas(capability: tuple[int, int] | None, config: str | None, size: int) -> None:
    assert workspace(capability, {} if config is None else {ENVIRONMENT: config}) == size


def test_deterministic_training_fixes_the_workspace_unless_it_is_fixed() -> None:
    assert workspace((7, 5), {}, deterministic=True) == 32 * MIB
    assert workspace((7, 5), {ENVIRONMENT: ":16:8"}, deterministic=True) == 2**17


def _run(*targets: str) -> Run:
    network = ranks(NetworkSettings(16, 16.0).adapters(targets))
    return Run(Sizes(), (network,), cuda=True, blas=USUAL)


def test_workspaces_are_counted_for_each_thread_and_stream() -> None:
    unet = _run("unet")
    assert predict(unet, Plan()).blas == 3 * USUAL, "states of captions are computed beside the passes"
    assert predict(unet, Plan(away=True)).blas == 2 * USUAL
    assert predict(_run("unet", "text_encoder"), Plan()).blas == 2 * USUAL


def test_a_recipe_s_run_counts_them_on_a_card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)

    def of(cuda: bool, **train: object) -> Run:
        sizes = {"size": (512, 512), "batch": 1, "chunks": 1, "captions": 1, "resolution": 512}
        run = Run.of(Sizes(), {"dim": 4, "alpha": 4.0}, train, ["unet"], cuda=cuda, **sizes)  # type: ignore[arg-type]
        assert run is not None
        return run

    assert (of(False).blas, of(True).blas, of(True, deterministic=True).blas) == (0, USUAL, 32 * MIB)


def test_graphs_keep_their_memory_while_an_optimiser_copies_gradients() -> None:
    run = _run("unet")
    plain, lion = (predict(replace(run, optimizers=frozenset({name})), Plan()) for name in ("adamw", "lion"))
    assert lion.workspace - plain.workspace == 4 * factors(run.sizes, run.ranks)


def test_the_pool_is_cut_up_as_torch_does() -> None:
    pool = Pool()
    pool.take(1, 1)
    pool.take(2, MIB)
    assert pool.reserved == 2 * MIB, "both in a segment of small blocks"
    pool.take(3, 8 * MIB)
    pool.take(4, 8 * MIB)
    assert pool.reserved == (2 + 20) * MIB
    pool.take(5, 5 * MIB)
    assert pool.reserved == (2 + 20 + 20) * MIB, "4 MiB are left of the first"
    pool.take(6, 16 * MIB + 1)
    assert pool.reserved == (2 + 20 + 20 + 18) * MIB
    pool.give_back(3)
    pool.give_back(4)
    pool.take(7, 20 * MIB)
    assert pool.reserved == (2 + 20 + 20 + 18) * MIB, "neighbours that are free are one"


def test_a_smaller_pass_fits_in_a_larger_one_s_memory_but_not_the_other_way() -> None:
    large, small = [(0, 40 * MIB), (1, 30 * MIB), (0, 0)], [(0, 36 * MIB), (1, 27 * MIB), (0, 0)]
    first, second = Pool(), Pool()
    assert [first.capture(large), first.capture(small)] == [70 * MIB] * 2
    assert [second.capture(small), second.capture(large)] == [64 * MIB, (64 + 40) * MIB]
