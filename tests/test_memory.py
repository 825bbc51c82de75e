"""The memory planner: parts against real models, peaks against a step's living bytes, the choice, and its words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.memory import Setting, measure
from lorac.cli import main
from lorac.errors import InputError
from lorac.recipe.base import base_facts, base_shapes
from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import PARTS
from lorac.sd.lora_settings import NetworkSettings
from lorac.train.memory.budget import parse, shown
from lorac.train.memory.choose import choose, remedies
from lorac.train.memory.predict import predict
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import Sizes, factors, ranks
from lorac.train.switches import Recompute
from tests.small import TEXT, UNET, base

BOTH = ("unet", "text_encoder")
GIB = 2**30


def _run(batch: int = 1, targets: tuple[str, ...] = BOTH, rank: int = 128, **more: object) -> Run:
    network = ranks(NetworkSettings(rank, float(rank)).adapters(targets))
    return Run(Sizes(), (network,), batch=batch, cuda=True, **more)  # type: ignore[arg-type]


def test_parameters_are_those_of_the_models() -> None:
    unet, text = base()
    sizes = Sizes(UNET.width, UNET.context, UNET.heads, text=TEXT.width, text_inner=TEXT.inner)
    assert sizes.unet_weights() == sum(p.numel() for p in unet.parameters())
    assert sizes.text_weights() == sum(p.numel() for p in text.parameters())
    assert (Sizes().unet_weights(), Sizes().text_weights()) == (859_520_964, 123_060_480)
    for conv in (None, 8):
        settings = NetworkSettings(16, 16.0, conv_dim=conv)
        network = LoRANetwork(unet, text, settings)
        expected = sum(p.numel() for part in PARTS for p in network.parameters(part))
        assert factors(sizes, ranks(settings.adapters(BOTH))) == expected


def test_sizes_are_read_from_headers() -> None:
    facts = base_facts("builtin:mini", "recipe")
    assert Sizes.of(base_shapes(facts.path), facts.heads) == Sizes(32, 64, 2, text=64, text_inner=256)
    assert Sizes.of({}, 8) == Sizes()


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        (Setting(128), [(256, 1), (512, 4)]),
        (Setting(32, ("unet",), Recompute.TRANSFORMER, gang=2), [(384, 1)]),
    ],
)
def test_predicted_peaks_are_within_five_per_cent(setting: Setting, steps: list[tuple[int, int]]) -> None:
    for point in measure(setting, steps):
        assert abs(point.error) < 0.05, point


def test_deeper_recomputing_and_more_passes_take_less_memory_and_more_time() -> None:
    run = _run(4)
    for outcomes in (
        [predict(run, Plan(1, level)) for level in Recompute],
        [predict(run, Plan(split)) for split in (1, 2, 4)],
    ):
        totals, works = [each.total for each in outcomes], [each.work for each in outcomes]
        assert totals == sorted(totals, reverse=True) and works == sorted(works)


@pytest.mark.parametrize(
    ("gib", "batch", "targets", "free"),
    [(8, 4, BOTH, True), (6, 4, ("unet",), True), (4, 1, ("unet",), True), (4, 4, ("unet",), False)],
)
def test_tiers(gib: int, batch: int, targets: tuple[str, ...], free: bool) -> None:
    """512 px, rank 128, AdamW with float32 states, by the predictions."""
    chosen = choose(_run(batch, targets), gib * GIB).chosen
    assert chosen is not None
    if free:
        assert chosen.plan == Plan(1, Recompute.ELEMENTWISE)


def test_the_smallest_tier_needs_a_smaller_rank_or_8_bit_states() -> None:
    """3 GiB, batch 1: AdamW's float32 states are too much, whatever is computed again."""
    run = _run(1, ("unet",))
    choice = choose(run, 3 * GIB)
    assert choice.chosen is None
    assert 0 < choice.smallest.prediction.total - 3 * GIB < 500 * 10**6
    assert any("network.dim" in remedy.text for remedy in remedies(run, 3 * GIB))


def test_the_quickest_plan_that_fits_is_taken() -> None:
    run = _run(4)
    free = choose(run, None)
    assert free.chosen is not None and free.times(free.chosen) == 1.0
    tight = choose(run, free.chosen.prediction.total - 1)
    assert tight.chosen is not None and tight.chosen.prediction.total < free.chosen.prediction.total
    fits = [o for o in tight.others if o.prediction.total <= free.chosen.prediction.total - 1]
    assert all(o.prediction.work >= tight.chosen.prediction.work for o in fits)


def test_remedies_fit() -> None:
    run = replace(_run(1, rank=256), ema=True)
    budget = 3 * GIB
    found = remedies(run, budget)
    assert found and all(remedy.total <= budget for remedy in found)


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * GIB), ("7.5 gib", int(7.5 * GIB)), ("6000MB", 6 * 10**9), ("512MiB", 2**29)]
)
def test_budgets(text: str, size: int) -> None:
    assert parse(text) == size


@pytest.mark.parametrize("text", ["8", "GiB", "-1GiB", "0GiB", "8Foo", ""])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(InputError, match="write it as 8GiB"):
        parse(text)


def test_sizes_in_words() -> None:
    assert (shown(7.4 * GIB), shown(2**29)) == ("7.40 GiB", "512 MiB")


def test_prediction_needs_no_torch() -> None:
    code = "import sys, lorac.train.memory.choose, lorac.plan_memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _pictures(folder: Path) -> Path:
    from PIL import Image

    (folder / "pictures").mkdir()
    Image.new("RGB", (128, 128), "white").save(folder / "pictures" / "a.png")
    recipe = folder / "small.toml"
    recipe.write_text('[[source]]\npath = "pictures"\ntrigger = ["x"]\n\n[train]\nsteps = 2\n', "utf-8")
    return recipe


def test_plan_and_build_with_a_budget(tmp_path: Path) -> None:
    recipe = _pictures(tmp_path)
    store = ["--store", str(tmp_path / "store")]
    shown_plan = CliRunner().invoke(main, ["plan", str(recipe), *store, "--budget", "8GiB"])
    assert shown_plan.exit_code == 0, shown_plan.output
    assert "at the peak of a step (within 8.00 GiB)" in shown_plan.output
    assert "× the time" in shown_plan.output
    refused = CliRunner().invoke(main, ["build", str(recipe), *store, "--budget", "100MiB"])
    assert refused.exit_code == 2
    assert "small.toml" in refused.output and "and the budget is 100 MiB" in refused.output
    assert not (tmp_path / "store").exists() or not any((tmp_path / "store").rglob("*.safetensors"))
    assert CliRunner().invoke(main, ["plan", str(recipe), *store, "--budget", "8Foo"]).exit_code == 2
