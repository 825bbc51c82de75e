"""The training step against diffusers and transformers with a LoRA of explicit wrappers, and the loop's bits."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.errors import Interrupted, TrainingDiverged
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.safetensors import deserialise, serialise
from lorac.train.gang import advance
from lorac.train.helper import threads
from lorac.train.loop import Leg
from lorac.train.loss_scale import LossScale
from lorac.train.objective import Pictures
from lorac.train.optimiser import Optimisation, Optimiser
from lorac.train.schedule import Item, Schedule, Settings, Subset, Variant
from lorac.train.slices import Sample, Slice, Step
from tests.alone import Alone
from tests.small import base, diffusers_unet, transformers_text_model

RANK, ALPHA, CLIP_SKIP, TOKENS = 4, 2.0, 2, 150


class Wrapped(nn.Module):
    """kohya's LoRAModule, written for the test: `org(x) + up(down(x)) · alpha / rank`."""

    def __init__(self, layer: Any, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = (nn.Parameter(tensor.clone()) for tensor in (down, up))

    def forward(self, x: Tensor, *_: object) -> Tensor:
        apply = F.conv2d if self.down.dim() == 4 else F.linear
        output: Tensor = self.layer(x) + apply(apply(x, self.down), self.up) * (ALPHA / RANK)
        return output


def wrap(model: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Wrap the layers of `model` that `tensors` name; returns the factors under kohya's names."""
    model.requires_grad_(False)
    factors: dict[str, nn.Parameter] = {}
    for path, layer in list(model.named_modules()):
        name = f"{prefix}_{path.replace('.', '_')}"
        if f"{name}.alpha" in tensors:
            wrapped = Wrapped(layer, tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"])
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, wrapped)
            factors |= {f"{name}.lora_down.weight": wrapped.down, f"{name}.lora_up.weight": wrapped.up}
    return factors


class Reference:
    """The same step with diffusers' U-Net and noise scheduler, transformers' CLIP and the wrappers above."""

    def __init__(self, unet: Any, text_encoder: Any, tensors: Mapping[str, Tensor]) -> None:
        from diffusers import DDPMScheduler

        self.unet, self.text = diffusers_unet(unet), transformers_text_model(text_encoder)
        prefix = "lora_te" if hasattr(self.text, "text_model") else "lora_te_text_model"
        self.factors = wrap(self.text, prefix, tensors) | wrap(self.unet, "lora_unet", tensors)
        self.scheduler = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            clip_sample=False,
        )

    def loss(self, step: Step, latents: list[Tensor]) -> Tensor:
        rows = []
        for sample in step.batches[0]:
            latent = latents[sample.item][None] * 0.18215
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(sample.noise_seed))
            timestep = torch.tensor([sample.timestep])
            noisy = self.scheduler.add_noise(latent, noise, timestep)
            estimate = self.unet(noisy, timestep, self.states(sample.ids)).sample
            rows.append((estimate - noise).square().mean() * sample.weight)
        return torch.stack(rows).mean()

    def states(self, ids: list[int]) -> Tensor:
        """kohya's chunks: begin state, the inner states of all chunks, end state."""
        padded = [*ids[:TOKENS], *[49407] * (TOKENS - len(ids))]
        chunks = [[49406, *padded[i : i + 75], 49407] for i in range(0, TOKENS, 75)]
        hidden = self.text(torch.tensor(chunks), output_hidden_states=True).hidden_states[-CLIP_SKIP]
        transformer = getattr(self.text, "text_model", self.text)
        states: Tensor = transformer.final_layer_norm(hidden)
        inner = states[:, 1:-1].reshape(1, TOKENS, -1)
        return torch.cat([states[:1, :1], inner, states[-1:, -1:]], dim=1)


def some_steps(count: int, batch: int, items: int, lr: float = 1e-3) -> Slice:
    generator = torch.Generator().manual_seed(9)

    def number(high: int) -> int:
        return int(torch.randint(0, high, (1,), generator=generator))

    steps = [
        Step(
            index,
            lr / 2,
            lr,
            [
                [
                    Sample(number(items), number(1000), number(2**40), 1.0 - 0.5 * slot, [number(49000)] * number(160))
                    for slot in range(batch)
                ]
            ],
        )
        for index in range(count)
    ]
    return Slice.of(steps, 0, TOKENS)


def some_latents(count: int, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(4, size, size, generator=generator) * 4 for _ in range(count)]


def new_trainer(merged: bool | None = None, sizes: tuple[Any, ...] = (), **more: Any) -> Alone:
    unet, text_encoder = base(0, *sizes)
    lora = LoRANetwork(unet, text_encoder, NetworkSettings(RANK, ALPHA), seed=1, merged=merged)
    generator = torch.Generator().manual_seed(2)
    lora.load_state(
        {
            name: tensor if tensor.dim() == 0 else torch.randn(tensor.shape, generator=generator) * 0.05
            for name, tensor in sorted(lora.state().items())
        }
    )
    return Alone(unet, text_encoder, lora, clip_skip=CLIP_SKIP, max_token_length=TOKENS, **more)


@pytest.mark.parametrize("merged", [True, False])
def test_loss_and_every_gradient_equal_those_of_diffusers(merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, latents = new_trainer(merged), some_latents(3)
    step = next(some_steps(1, 2, 3).steps())
    reference = Reference(*base(), trainer.lora.state())
    expected = reference.loss(step, latents)
    torch.autograd.backward(expected)

    monkeypatch.setattr(Optimiser, "apply", lambda *_: None)
    loss = trainer.step(step, Pictures(latents))
    assert abs(loss - expected) <= 1e-5 * expected
    assert len(reference.factors) == 528
    factors = [factor for part in trainer.trained for factor in trainer.lora.parameters(part)]
    gradients = trainer.lora.named({factor: factor.grad for factor in factors if factor.grad is not None})
    norm = torch.stack([f.grad.norm() for f in reference.factors.values() if f.grad is not None]).norm()
    for name, factor in reference.factors.items():
        if factor.grad is None:  # the last layer, which clip_skip 2 leaves out
            assert not gradients[name].any(), name
            continue
        error = (gradients[name] - factor.grad).norm()
        assert error <= 1e-5 * factor.grad.norm() + 1e-9 * norm, (name, error, factor.grad.norm())


def test_updates_equal_clipped_adamw_with_two_learning_rates() -> None:
    limit = 0.2
    trainer = new_trainer(settings=Optimisation(max_grad_norm=limit))
    latents, steps = some_latents(3), some_steps(4, 1, 3)
    reference = Reference(*base(), trainer.lora.state())
    text = [factor for name, factor in reference.factors.items() if name.startswith("lora_te")]
    unet = [factor for name, factor in reference.factors.items() if name.startswith("lora_unet")]
    optimiser = torch.optim.AdamW([{"params": text}, {"params": unet}], weight_decay=0.01)
    clipped = 0
    for step in steps.steps():
        for group, rate in zip(optimiser.param_groups, (step.lr_text, step.lr_unet), strict=True):
            group["lr"] = rate
        torch.autograd.backward(reference.loss(step, latents))
        clipped += bool(torch.nn.utils.clip_grad_norm_([*text, *unet], limit) > limit)
        optimiser.step()
        optimiser.zero_grad()
        trainer.step(step, Pictures(latents))
    assert clipped > 0
    ours = trainer.lora.state()
    for name, factor in reference.factors.items():
        # Adam divides by the size of the gradient, so where that is rounding noise any update up to lr is as good.
        assert (ours[name] - factor).abs().max() <= 2e-4, name
        assert (ours[name] - factor).abs().mean() <= 2e-6, name


def test_an_untrained_text_encoder_stays_as_it_is() -> None:
    trainer = new_trainer(trained=("unet",))
    before = {name: tensor.clone() for name, tensor in trainer.lora.state().items()}
    trainer.step(next(some_steps(1, 1, 1).steps()), Pictures(some_latents(1)))
    after = trainer.state()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.startswith("lora_unet") for name in changed)


def run(trainer: Alone, steps: Slice, latents: list[Tensor], **more: Any) -> tuple[bytes, list[float]]:
    cancelled = more.pop("cancelled", threading.Event())
    arguments = {"state": None, "progress": lambda done, loss: None, "snapshot": lambda state: None, **more}
    leg = Leg(trainer, steps, Pictures(latents), **arguments)
    _, failed = advance(trainer.trainer, {0: leg}, cancelled)
    for reason in failed.values():
        raise reason
    state, losses = leg.end()
    return serialise(state, {}), losses


def test_interruptions_at_any_step_leave_no_trace() -> None:
    steps, latents = some_steps(6, 1, 3), some_latents(3, size=8)
    whole, losses = run(new_trainer(), steps, latents)
    assert len(losses) == 6

    state: dict[str, Tensor] | None = None
    stops = iter([1, 2, 2, 5])
    finished = None
    while finished is None:
        cancelled = threading.Event()
        snapshots: list[Mapping[str, Tensor]] = []
        stop = next(stops, 99)

        def progress(done: int, loss: float, stop: int = stop, cancelled: threading.Event = cancelled) -> None:
            if done >= stop:
                cancelled.set()

        try:
            finished = run(
                new_trainer(),
                steps,
                latents,
                state=state,
                progress=progress,
                cancelled=cancelled,
                snapshot=snapshots.append,
            )
        except Interrupted:
            state, _ = deserialise(serialise(snapshots[-1], {}), "snapshot")
    assert finished == (whole, losses)


def test_snapshots_are_taken_by_the_clock_and_change_nothing() -> None:
    steps, latents = some_steps(3, 1, 2), some_latents(2, size=8)
    plain = run(new_trainer(), steps, latents)
    snapshots: list[Mapping[str, Tensor]] = []
    assert run(new_trainer(), steps, latents, snapshot=snapshots.append, snapshot_seconds=0.0) == plain
    assert [int(state["step"]) for state in snapshots] == [0, 1, 2]
    resumed = run(new_trainer(), steps, latents, state=snapshots[1])
    assert resumed == plain


def test_two_slices_equal_one() -> None:
    item = Item((64, 64), [[Variant([[320, 267]] * 3, [[320]] * 3)]])
    settings = Settings(3, 1e-3, 1e-3, 1e-3, epochs=2, shuffle_caption=True, max_token_length=TOKENS)
    subsets, latents = [Subset(1, False, [item] * 2)], some_latents(2, size=8)
    (one,) = Schedule(subsets, settings).slices()
    first, second = Schedule(subsets, replace(settings, save_every_n_epochs=1)).slices()
    whole, losses = run(new_trainer(), one, latents)
    trainer = new_trainer()
    middle, first_losses = run(trainer, first, latents)
    end, second_losses = run(new_trainer(), second, latents, state=deserialise(middle, "")[0])
    assert first_losses + second_losses == losses
    states = [{k: v for k, v in deserialise(data, "")[0].items() if k != "losses"} for data in (whole, end)]
    assert serialise(states[0], {}) == serialise(states[1], {})


def test_a_loss_that_is_not_a_number_stops_training_with_a_remedy() -> None:
    latents = [torch.full((4, 8, 8), math.nan)]
    with pytest.raises(TrainingDiverged, match=r"nan at step 0.*learning rate 0.001.*alpha 2; .*learning_rate"):
        run(new_trainer(), some_steps(2, 1, 1), latents)


def test_the_loss_scale_follows_torchs_rules() -> None:
    device = torch.device("cpu")
    ours, theirs = LossScale(device, needed=True), torch.amp.GradScaler("cpu", growth_interval=2000)
    theirs.scale(torch.ones(()))
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=0.0)
    for step in range(4100):
        bad = step in (3, 4, 50)
        gradient = torch.tensor([math.inf if bad else 1.0])
        weight.grad = gradient.clone()
        theirs.step(optimiser)
        theirs.update()
        ours.update(gradient.norm())
        assert float(ours.value) == theirs.get_scale(), step


def test_a_step_whose_gradients_overflow_changes_nothing_but_the_scale() -> None:
    trainer, latents = new_trainer(), some_latents(1, size=8)
    step = next(some_steps(1, 1, 1).steps())
    plain = new_trainer()
    plain.step(step, Pictures(latents))
    trainer.loss_scale.needed = True
    trainer.loss_scale.value = torch.tensor(3e38)
    before = trainer.state()
    trainer.step(step, Pictures(latents))
    after = trainer.state()
    assert after["loss_scale"] == before["loss_scale"] / 2
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("lora_"))
    trainer.loss_scale.value = torch.tensor(1024.0)
    trainer.step(step, Pictures(latents))
    expected = plain.state()
    for name, tensor in trainer.state().items():
        if name.startswith("lora_"):
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-6, msg=name)


def test_gradients_are_not_clipped_when_the_limit_is_zero() -> None:
    step, latents = next(some_steps(1, 1, 1).steps()), some_latents(1)
    moments = []
    for limit in (0.0, 1e9, 1e-3):
        trainer = new_trainer(settings=Optimisation(max_grad_norm=limit))
        trainer.step(step, Pictures(latents))
        moments.append(torch.cat([m.flatten() for name, m in sorted(trainer.state().items()) if "exp_avg/" in name]))
    assert torch.equal(moments[0], moments[1])
    # exp_avg is 0.1 of the first gradient, whose norm the last limit makes 1e-3.
    assert float(moments[0].norm()) > 1e-3
    assert float(moments[2].norm()) == pytest.approx(1e-4, rel=1e-3)


def test_the_bits_do_not_depend_on_the_number_of_cores() -> None:
    def result(cores: int) -> tuple[Any, list[float]]:
        with threads(cores):
            return run(new_trainer(True), some_steps(4, 1, 3), some_latents(3))

    assert result(1) == result(4)
