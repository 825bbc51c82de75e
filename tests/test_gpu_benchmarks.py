"""The benchmarks of `gpu.sh` up to the card: each does its work at a small size on a CPU, and the table is what was
measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lorac.kernels import gate

from benchmarks import ablation, attention, deterministic, gpu, gpu_tables, profile_step, step, tiers, whole
from benchmarks.common import ROOT
from benchmarks.models import SIZES, draw
from benchmarks.ours import LoracStep
from benchmarks.peer import PeftStep
from lorac.sd.clip import TextConfig
from lorac.sd.unet import UNetConfig

UNET = UNetConfig(width=16, context=16, heads=2, groups=4)
TEXT = TextConfig(width=16, layers=12, heads=2, inner=32)
NO_CARD = not torch.cuda.is_available()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base of which a step takes a moment, under the names of the usual ones."""
    for name in SIZES:
        monkeypatch.setitem(SIZES, name, replace(SIZES[name], unet=UNET, text=TEXT, rank=8, px=64))


Told = Callable[..., dict[str, Any]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """What a benchmark prints as JSON."""

    def run(main: Callable[[], None], *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--json", "--device", "cpu"])
        main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    return run


def test_attention(told: Told) -> None:
    facts = told(attention.main, "--size", "mini")
    assert [(row["tokens"], row["keys"], row["batch"]) for row in facts["rows"]] == [
        (16, 16, 1),
        (16, 7, 1),
        (7, 7, 1),
        (16, 16, 5),
        (16, 7, 5),
        (7, 7, 5),
    ]
    for row in facts["rows"]:
        assert {"sdpa", "math"} <= row["ms"].keys() and row["best"] in row["ms"] and row["auto"] in row["ms"]
        assert all(len(times) == 2 and times[0] > 0 for times in row["ms"].values())


def test_attention_s_sizes_are_those_of_sd15() -> None:
    *found, text = attention.sizes("full", torch.device("cuda"))
    assert text[:5] == (5, 12, 77, 77, 64) and text.causal
    found = [size for size in found if not size.causal]
    assert {(size.queries, size.channels) for size in found} == {(4096, 40), (1024, 80), (256, 160), (64, 160)}
    assert {size.keys for size in found if size.keys != size.queries} == {77, 152, 154, 227, 231}
    assert {size.batch for size in found} == {1, 5} and {size.dtype for size in found} == {torch.float16}


@pytest.mark.usefixtures("small")
def test_deterministic(told: Told) -> None:
    facts = told(deterministic.main, "--rounds", "1", "--steps", "2")
    assert facts["equal"] and len(set(facts["sha256"])) == 1 and facts["ratio"] > 0
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("small")
def test_another_training_has_another_digest() -> None:
    models = draw(SIZES["mini"])
    assert deterministic.digest(models, 64, 1) != deterministic.digest(models, 64, 2)


@pytest.mark.usefixtures("small")
def test_profile(told: Told) -> None:
    facts = told(profile_step.main)
    assert {"GEMM", "optimiser", "attention", "copies"} <= facts["kinds"].keys()
    assert sum(facts["kinds"].values()) == pytest.approx(1, abs=1e-3)
    assert facts["calls"] > 100 and facts["top"][0]["ms"] >= facts["top"][-1]["ms"] > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm80_xmma_fprop_implicit_gemm_f16f16_nhwc", "convolution"),
        ("ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_stages_32x6_nn", "GEMM"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "GEMM"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_f16_s16816gemm_relu>", "GEMM"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm75(PyTorchMemEffAttention::AttentionKernel)", "attention"),
        ("void at::native::RowwiseMomentsCUDAKernel<c10::Half>", "norms"),
        ("_group_norm_silu_forward", "norms"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("aten::baddbmm", "GEMM"),
        ("aten::mkldnn_convolution", "convolution"),
        ("something", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(name: str, kind: str) -> None:
    assert profile_step.kind_of(name) == kind


@pytest.mark.usefixtures("small")
def test_ablation_leaves_a_kernel_out_and_puts_another_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(LoracStep, "__call__", lambda step, index: seen.append(set(gate.UNUSED)))
    before = set(gate.UNUSED)
    for name in (ablation.ON, "geglu", "lora_linear"):
        ablation.Changed(name, draw(SIZES["mini"]), 64)(0)
    assert seen == [before, before | {"geglu"}, before - {"lora_linear"}]
    assert gate.UNUSED == before


def test_a_whole_training(told: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded base's, and what is far too fast."""
    monkeypatch.setattr(whole, "NOISE", 1e30)
    facts = told(whole.main, "--steps", "3", "--noise", "9")
    assert facts["exit_code"] == 1 and "diverged" in facts["said"] and facts["files"] == 0


def test_tiers_train_as_planned(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = told(tiers.main, "--size", "mini", "--px", "64", "--steps", "2", "--only", "0")
    one, several = facts["rows"]
    for row in (one, several):
        assert row["held"] and row["gib"] == 8 and row["predicted"] > 0 and row["split"] == 1, row
    assert one["shapes"] == 1 < several["shapes"]
    monkeypatch.setattr(tiers, "SECONDS", 0.01)
    with pytest.raises(SystemExit):
        told(tiers.main, "--size", "mini", "--only", "0")


@pytest.mark.slow  # torch looks at every line of diffusers' U-Net
@pytest.mark.usefixtures("small")
def test_the_compiled_peer_learns_what_the_other_learns() -> None:
    models = draw(SIZES["full"])
    losses = []
    for compiler in (None, "eager"):
        torch.manual_seed(0)
        peer = PeftStep(models, 64, 1, compiler)
        losses.append([peer(index) for index in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.skipif(not NO_CARD, reason="there is a card")
@pytest.mark.parametrize("main", [attention.main, tiers.main])
def test_without_a_card_they_say_so(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    main()
    assert "no CUDA device" in capsys.readouterr().out


def test_every_part_of_the_run_is_there() -> None:
    """Of a module and options that there are."""
    names = [part.name for part in gpu.PARTS]
    assert names[:3] == ["tests", "step 512", "gang 512"] and len(set(names)) == len(names)
    for part in gpu.PARTS:
        assert find_spec(part.arguments[1]), part
    assert gpu.WHOLE < 9 * 60


def test_what_was_measured_is_handed_over(tmp_path: Path) -> None:
    results, out, page = tmp_path / "results", tmp_path / "out", tmp_path / "README.md"
    for folder in (results, out):
        folder.mkdir()
    page.write_text("a\n<!-- cuda: written by python -m benchmarks.tables -->\n\n<!-- end of cuda -->\nb\n", "utf-8")
    case = {"commit": "abc", "versions": {"torch": "2"}, "count": 5, "ratio": 2.0, "seconds": seconds(together=0.1)}
    (results / "gang.json").write_text(json.dumps({"cases": {"full-512-n5-cuda": case}}), "utf-8")
    gpu.hand_over(out, results, page)
    assert sorted(path.name for path in out.iterdir()) == ["gang.json", "gpu.md"]
    made = (out / "gpu.md").read_text("utf-8")
    assert "50.0 LoRA-steps/s" in made and made in page.read_text("utf-8")


def test_parts_that_fail_or_take_too_long_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [gpu.Part("bad", ("-c", "print('first'); print('.\\n' * 99); raise SystemExit(3)"), 60)]
    parts += [
        gpu.Part("long, too", ("-c", "import time; time.sleep(60)"), 1),
        gpu.Part("good", ("-c", "print('yes')"), 60),
    ]
    found = gpu.run(parts, tmp_path / "new")
    assert [found[name]["exit_code"] for name in ("bad", "long, too", "good")] == [3, 124, 0]
    assert found["good"]["said"] == ["yes"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"gpu-bad.log", "gpu-long-too.log"}
    assert (tmp_path / "new" / "gpu-bad.log").read_text("utf-8").startswith("first")
    monkeypatch.setattr(gpu, "WHOLE", 10)
    assert gpu.run(parts[-1:], tmp_path) == {"good": {"left_out": "no time left"}}


def test_what_is_not_measured_is_not_made_up(tmp_path: Path) -> None:
    assert gpu_tables.cuda(tmp_path) == gpu_tables.UNMEASURED
    (tmp_path / "step.json").write_text(json.dumps({"cases": {"full-512-b1": {"commit": "abc"}}}), encoding="utf-8")
    assert gpu_tables.cuda(tmp_path) == gpu_tables.UNMEASURED, "that was a CPU"


def seconds(**medians: float) -> dict[str, Any]:
    return {name.replace("_", " "): {"median": median, "seconds": [median]} for name, median in medians.items()}


def test_a_table_says_what_was_measured(tmp_path: Path) -> None:
    about = {"commit": "abc", "versions": {"torch": "2.13"}, "card": {"name": "A card", "driver": "580.1"}}
    tier = {"gib": 8, "batch": 4, "text": True}
    measured = {"recompute": "feed_forward", "predicted": 2**32, "allocated": 2**32, "reserved": 2**33, "error": -0.01}
    measured["shapes"] = 5
    cases: dict[str, dict[str, Any]] = {
        "step": {"seconds": seconds(lorac=0.02, matrix_product=1.0), "ratio": 3.0, "share": {"lorac": 0.4}},
        "gang": {"count": 5, "seconds": seconds(together=0.04), "ratio": 2.0},
        "tiers": {
            "steps": 20,
            "rows": [{**tier, **measured, "held": True}, {**tier, "held": False, "said": "a | b"}],
        },
        "kernels": {"kernels": {"geglu": {"microseconds": 12.5}}},
        "attention": {
            "rows": [{"heads": 8, "tokens": 64, "keys": 77, "channels": 160, "batch": 1, "ms": {"sdpa": [0.1, 0.2]}}],
        },
        "deterministic": {"equal": True, "steps": 6, "ratio": 0.9},
        "profile_step": {"step_ms": 20.0, "busy_ms": 18.0, "calls": 900, "kinds": {"GEMM": 0.5}},
    }
    cases["attention"]["rows"][0] |= {"best": "sdpa", "auto": "sdpa"}
    cases["ablation"] = {"ratio": 1.25, "with": False}
    cases["whole"] = {"steps": 300, "rate": 1e-3, "exit_code": 1, "said": "training diverged", "seconds": 9.0}
    cases["parity_cuda"] = {"relative_errors": {"loss, float16": 2e-3}}
    assert cases.keys() == gpu_tables.PARTS.keys()
    for name, facts in cases.items():
        key = "full-512-graphs-cuda" if name == "ablation" else "full-512-cuda"
        text = json.dumps({"cases": {key: {**about, **facts}, "full-512": {"commit": "cpu"}}})
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    found = gpu_tables.cuda(tmp_path)
    sizes = "4.00 GiB | 4.00 GiB | 8.00 GiB"
    for line in (
        "### A card, driver 580.1, torch 2.13, commit abc",
        "| lorac | 20.0 | 50.0 | 40% |",
        f"| 8 GiB | 4, 5 shapes | U-Net and text encoder | feed forward | {sizes} | -1.0% | yes |",
        "| 8 GiB | 4 | U-Net and text encoder | a / b |  |  |  |  | no |",
        "| geglu | 12.5 |",
        "| 64 × 77 | 8 · 160 | 1 | 0.100 + 0.200 | sdpa | sdpa |",
        "| GEMM | 50% |",
        "A step of full, 512 px, without `graphs` takes 1.25 × the time.",
        "`lorac build` of 300 steps with learning rate 0.001, `full-512`: exit code 1: training diverged.",
        "The step on the card against that on the CPU, relative errors, `full-512`: loss, float16 2.0e-03.",
    ):
        assert line in found.splitlines(), found
    assert "125.0 LoRA-steps/s" in found and "give the same bits, at 0.90" in found
    tables = [line for line in found.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_targets_are_beside_what_was_measured(tmp_path: Path) -> None:
    about = {"commit": "abc", "versions": {"torch": "2.13"}}
    both = {"over_eager": 2.0, "over_compiled": None}
    kernels = {"geglu 1 forward": {**both, "over_compiled": 1.2}, "loss 2": {**both, "over_eager": 1.6}}
    kernels["lora_linear 3"] = {"over_eager": 0.5, "over_compiled": 0.5}
    cases: dict[tuple[str, str], dict[str, Any]] = {
        ("step", "full-512-b1"): {"ratio": 3.5, "seconds": seconds(lorac=0.016), "share": {"lorac": 0.3}},
        ("gang", "full-512-n5"): {"ratio": 2.0, "count": 5, "seconds": seconds(together=0.05), "share": 0.36},
        ("kernels", "full-512"): {"kernels": kernels},
    }
    for (name, case), facts in cases.items():
        text = json.dumps({"cases": {f"{case}-cuda": {**about, **facts}}})
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    found = gpu_tables.cuda(tmp_path).splitlines()
    rows = [line.split(" | ")[1:] for line in found[found.index("|---|---|---|") + 1 :][:7]]
    assert [measured for measured, _ in rows] == [
        "3.50 ×",
        "62.5",
        "100.0",
        "36%",
        "1.60 ×",
        "1.20 ×",
        "not measured",
    ]


def test_the_script_is_what_the_readme_names() -> None:
    assert (ROOT / "benchmarks" / "gpu.sh").exists()
    assert "gpu.sh" in gpu_tables.UNMEASURED and "--compile" in (step.__doc__ or "")
