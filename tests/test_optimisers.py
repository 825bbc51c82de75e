"""The optimisers of other packages: kohya's use of them, their state through a file, averages, accumulation."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorac.errors import InputError
from lorac.recipe.optimisers import OPTIMISERS
from lorac.sd.clip import TextConfig
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.safetensors import deserialise, serialise
from lorac.sd.unet import UNetConfig
from lorac.train.helper import Inline
from lorac.train.library import Library, _number, class_of
from lorac.train.loss_scale import LossScale
from lorac.train.noise import Noise
from lorac.train.objective import Objective, Pictures
from lorac.train.optimiser import Optimisation
from lorac.train.slices import Step
from tests.alone import Alone
from tests.small import base
from tests.test_train_step import new_trainer, run, some_latents, some_steps

UNET = UNetConfig(width=16, context=16, heads=2, groups=4)
TEXT = TextConfig(width=16, layers=12, heads=2, inner=32, vocabulary=49408)

NEEDED = {
    "adamw8bit": "bitsandbytes",
    "lion": "lion_pytorch",
    "prodigy": "prodigyopt",
    "adamw_schedule_free": "schedulefree",
}
RATES = {"unet": 1e-3, "text_encoder": 1e-3}


def small(settings: Optimisation) -> Alone:
    return new_trainer(None, (UNET, TEXT), settings=settings)


def optimisation(name: str, **more: Any) -> Optimisation:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    return Optimisation(name, **more)


LIBRARIES = [name for name in OPTIMISERS if name != "adamw"]
CASES: list[tuple[str, dict[str, Any], float | None]] = [
    *((name, {}, None) for name in LIBRARIES),
    ("adamw8bit", {"min_8bit_size": 1000}, 0.1),
    ("lion", {}, 0.1),
    ("prodigy", {"d_coef": 2.0, "use_bias_correction": True, "safeguard_warmup": True}, 0.1),
    ("adafactor", {"relative_step": False, "beta1": 0.9}, 0.1),
    ("adafactor", {"scale_parameter": False, "warmup_init": True}, None),
    ("adamw_schedule_free", {"warmup_steps": 2}, 0.1),
]


def kohyas(name: str, arguments: dict[str, Any], factors: list[nn.Parameter], **more: Any) -> Any:
    """As in kohya's `get_optimizer`: one parameter for each factor of each module."""
    if name == "adafactor":
        arguments = {"relative_step": True, **arguments}
        optimiser = class_of(name)(factors, lr=None if arguments["relative_step"] else 1e-3, **arguments, **more)
    else:
        optimiser = class_of(name)(factors, lr=1e-3, **arguments, **more)
    if hasattr(optimiser, "train"):
        optimiser.train()
    return optimiser


@pytest.mark.parametrize(("name", "arguments", "weight_decay"), CASES, ids=str)
def test_each_module_is_updated_as_by_kohya(name: str, arguments: dict[str, Any], weight_decay: float | None) -> None:
    settings = optimisation(name, optimizer_args=arguments, weight_decay=weight_decay, max_grad_norm=0.0)
    lora = LoRANetwork(*base(0, UNET, TEXT), NetworkSettings(64, 4.0), seed=1, merged=False)
    scale = LossScale(torch.device("cpu"), False)
    ours = Library(lora, ("unet", "text_encoder"), settings, scale, lambda part: None, Inline())
    parameters = [parameter for part in RATES for parameter in lora.parameters(part)]  # type: ignore[arg-type]
    before = lora.named({p: p.detach().clone() for p in parameters})
    reference = {
        name: nn.Parameter(before[name].clone())
        for group in ours.optimiser.param_groups
        for name in names_of(ours, group)
    }
    more = {} if weight_decay is None else {"weight_decay": weight_decay}
    theirs = kohyas(name, arguments, list(reference.values()), **more)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for factor, gradient in lora.named({p: p.grad for p in parameters if p.grad is not None}).items():
            reference[factor].grad = gradient.clone()
        ours.apply(torch.tensor(1.0), RATES)  # type: ignore[arg-type]
        theirs.step()
    assert all(parameter.grad is None for parameter in parameters)
    averages = ours.averages()
    if averages is not None:
        theirs.eval()
    after = lora.named(averages or {p: p.detach() for p in parameters})
    changed = 0
    for factor, expected in reference.items():
        assert torch.equal(after[factor], expected), factor
        changed += not torch.equal(expected, before[factor])
    assert changed > 500


def names_of(library: Library, group: dict[str, Any]) -> Iterator[str]:
    names = {id(leaf): name for name, leaf in library.leaves.items()}
    return (names[id(leaf)] for leaf in group["params"])


@pytest.mark.parametrize("name", LIBRARIES)
def test_going_on_from_a_file_leaves_no_trace(name: str) -> None:
    settings = optimisation(name, weight_decay=0.05)
    steps, latents = some_steps(4, 1, 2, lr=1e-3), some_latents(2, size=8)
    snapshots: list[Any] = []
    if name == "prodigy":
        steps.lr_text = steps.lr_unet
    plain = run(
        small(settings),
        steps,
        latents,
        snapshot=snapshots.append,
        snapshot_seconds=0,
    )
    state, _ = deserialise(serialise(snapshots[2], {}), "")
    assert int(state["step"]) == 2
    assert run(small(settings), steps, latents, state=state) == plain


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_going_on_with_an_average_leaves_no_trace(name: str) -> None:
    settings = optimisation(name, ema_decay=0.9)
    steps, latents = some_steps(4, 1, 2), some_latents(2, size=8)
    snapshots: list[Any] = []
    plain = run(small(settings), steps, latents)
    assert (
        run(
            small(settings),
            steps,
            latents,
            snapshot=snapshots.append,
            snapshot_seconds=0,
        )
        == plain
    )
    state, _ = deserialise(serialise(snapshots[2], {}), "")
    assert run(small(settings), steps, latents, state=state) == plain


def test_the_average_is_that_of_the_factors_and_trains_the_same() -> None:
    steps, pictures = list(some_steps(4, 1, 2).steps()), Pictures(some_latents(2, size=8))
    plain, averaged = new_trainer(), new_trainer(settings=Optimisation(ema_decay=0.3))
    expected = {name: tensor.double() for name, tensor in plain.lora.state().items()}
    for n, step in enumerate(steps):
        plain.step(step, pictures)
        averaged.step(step, pictures)
        decay = min(0.3, (1 + n) / (10 + n))
        factors = plain.state()
        expected = {name: decay * tensor + (1 - decay) * factors[name].double() for name, tensor in expected.items()}
    state = averaged.state()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name].double(), tensor, rtol=0, atol=1e-7)
        assert torch.equal(state[f"raw/{name}"], factors[name])


@pytest.mark.parametrize("merged", [True, False])
def test_batches_of_a_step_equal_one_large_batch(merged: bool) -> None:
    """Also with noise that depends on settings: a sample's noise is its own."""
    pictures = Pictures(some_latents(3, size=8))
    (step,) = some_steps(1, 4, 3).steps()
    samples = [replace(sample, weight=1.0) for sample in step.batches[0]]
    objective = Objective(Noise(noise_offset=0.1, multires_noise_iterations=4))
    gradients, losses = [], []
    for batches in ([samples], [samples[:2], samples[2:]], [[sample] for sample in samples]):
        trainer = new_trainer(merged, settings=Optimisation(max_grad_norm=0.0), objective=objective)
        losses.append(float(trainer.step(replace(step, batches=batches), pictures)))
        gradients.append({k: v for k, v in trainer.state().items() if k.startswith("exp_avg/")})
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    norm = torch.stack([value.norm() for value in gradients[0].values()]).norm()
    for accumulated in gradients[1:]:
        for name, value in gradients[0].items():
            assert (accumulated[name] - value).norm() <= 1e-4 * value.norm() + 1e-7 * norm, name


def test_lora_plus_and_factors_of_blocks_are_on_the_learning_rates() -> None:
    for name in ("adamw", "adafactor"):
        arguments = {} if name == "adamw" else {"relative_step": False, "scale_parameter": False}
        unet, text_encoder = base()
        network = NetworkSettings(4, 4.0, loraplus_lr_ratio=16.0, mid_lr_weight=0.5)
        lora = LoRANetwork(unet, text_encoder, network, seed=1)
        settings = Optimisation(name, arguments, weight_decay=0.0, max_grad_norm=0.0)
        trainer = Alone(unet, text_encoder, lora, clip_skip=2, max_token_length=150, settings=settings)
        before = {k: v.clone() for k, v in lora.state().items()}
        trainer.step(next(some_steps(1, 1, 1).steps()), Pictures(some_latents(1)))
        trainer.optimiser.settle()
        moved = {k: float((v - before[k]).square().mean().sqrt()) for k, v in lora.state().items()}
        up = [v for k, v in moved.items() if k.startswith("lora_unet") and k.endswith("up.weight")]
        middle = [v for k, v in moved.items() if "mid_block" in k and k.endswith("up.weight")]
        # The first step of AdamW moves every number by the learning rate, that of Adafactor has this root mean square.
        assert max(up) == pytest.approx(16e-3, rel=0.02), name
        assert max(middle) == pytest.approx(8e-3, rel=0.02), name


def test_dropout_depends_on_seed_step_and_batch_alone() -> None:
    (step,) = some_steps(1, 2, 2).steps()
    pictures = Pictures(some_latents(2, size=8))

    def loss(seed: int, step: Step) -> Tensor:
        unet, text_encoder = base()
        lora = LoRANetwork(unet, text_encoder, NetworkSettings(4, 4.0, dropout=0.5), seed=1)
        generator = torch.Generator().manual_seed(2)
        for parameter in (p for part in RATES for p in lora.parameters(part)):  # type: ignore[arg-type]
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return Alone(unet, text_encoder, lora, seed=seed).step(step, pictures)

    first = loss(1, step)
    assert torch.equal(first, loss(1, step))
    assert not torch.equal(first, loss(2, step))
    assert not torch.equal(first, loss(1, replace(step, index=1)))


def test_norms_of_changes_are_limited_after_each_step() -> None:
    limit = 0.02
    trainer = new_trainer(settings=Optimisation(scale_weight_norms=limit))
    trainer.step(next(some_steps(1, 1, 1).steps()), Pictures(some_latents(1)))
    state = trainer.state()
    norms = [
        float((state[f"{name}.lora_up.weight"].flatten(1) @ state[f"{name}.lora_down.weight"].flatten(1)).norm()) * 0.5
        for name in (key.removesuffix(".alpha") for key in state if key.endswith(".alpha"))
    ]
    assert max(norms) == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_table_of_settings_is_that_of_the_package(name: str) -> None:
    optimisation(name)
    known = inspect.signature(class_of(name).__init__).parameters
    assert {"lr", "weight_decay", *OPTIMISERS[name].arguments} <= set(known)
    for key in ("betas", "eps"):
        # Adafactor's own `eps` is a pair of other numbers.
        assert (key in known and (name, key) != ("adafactor", "eps")) == (key not in OPTIMISERS[name].lacks)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lion_pytorch", "lion_pytorch.lion_pytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"optimiser lion needs the package lion-pytorch.*pip install lion-pytorch"):
        new_trainer(settings=Optimisation("lion"))


def test_a_value_that_the_optimiser_refuses_is_named() -> None:
    optimisation("prodigy")
    with pytest.raises(InputError, match=r"prodigy refuses its settings: Invalid d0 value"):
        new_trainer(settings=Optimisation("prodigy", {"d0": -1.0}))


def test_a_step_whose_gradients_overflow_changes_no_factor() -> None:
    trainer = new_trainer(settings=optimisation("lion"))
    trainer.loss_scale.needed = True
    trainer.loss_scale.value = torch.tensor(3e38)
    before = trainer.state()
    trainer.step(next(some_steps(1, 1, 1).steps()), Pictures(some_latents(1, size=8)))
    after = trainer.state()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name.startswith("lora_"))
    assert after["loss_scale"] == before["loss_scale"] / 2


@pytest.mark.parametrize("value", [True, False, 3, 0.1, float("inf")])
def test_numbers_come_back_as_they_were(value: float) -> None:
    back = _number(value).item()
    assert back == value and type(back) is type(value)
