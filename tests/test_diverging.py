"""Training that diverges says so, and leaves nothing behind that is not a number; with the limits that hold on a card,
where losses are read in groups and float16 may overflow now and then."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lorac.errors import TrainingDiverged
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train import loop
from lorac.train.loop import Leg, State
from lorac.train.member import Member
from lorac.train.objective import Pictures
from lorac.train.schedule import Item, Schedule, Settings, Subset, Variant
from lorac.train.slices import Slice
from lorac.train.step import Trainer
from lorac.train.switches import Switches
from tests.small import base
from tests.test_tape import TEXT, UNET

HALF = torch.float16


@pytest.fixture(autouse=True)
def limits_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STREAK", {"cpu": loop.STREAK["cuda"]})
    monkeypatch.setattr(loop, "COLLECT_EVERY", {"cpu": loop.COLLECT_EVERY["cuda"]})


def trainer_of(dtype: torch.dtype, alpha: float = 128.0) -> Trainer:
    """The added form, as of a large base: its output overflows where a merged weight would."""
    unet, text = base(0, UNET, TEXT)
    unet.to(dtype), text.to(dtype)
    lora = LoRANetwork(unet, text, NetworkSettings(4, alpha), ("unet",), seed=1, merged=False)
    return Trainer(unet, text, [Member(lora, trained=("unet",))], switches=Switches(tape=False, beside=False))


def steps_of(count: int, rate: float) -> Slice:
    item = Item((64, 64), [[Variant([[320]], [])]])
    settings = Settings(0, rate, rate, rate, steps=count)
    return next(iter(Schedule([Subset(1, False, [item])], settings).slices()))


def latents(value: float | None = None) -> Pictures:
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Pictures([noise if value is None else torch.full_like(noise, value)])


def leg_of(trainer: Trainer, steps: Slice, pictures: Pictures, **more: Any) -> Leg:
    given = {"state": None, "progress": lambda done, loss: None, "snapshot": lambda state: None, **more}
    return Leg(trainer.members[0], steps, pictures, **given)


def go(trainer: Trainer, leg: Leg, steps: int | None = None) -> None:
    """To its end, or for so many steps. Raises what stopped it."""
    while not leg.over and leg.done != steps:
        (loss,) = trainer.step([leg.turn()])
        assert loss is not None
        leg.took(loss)


def assert_numbers(state: State) -> None:
    assert all(bool(tensor.isfinite().all()) for name, tensor in state.items() if name != "losses")


def test_a_wild_rate_in_float16_is_told_and_no_snapshot_holds_what_is_no_number() -> None:
    """Fewer steps than losses are read at once: nobody has looked at them before the end."""
    snapshots: list[State] = []
    for seconds in (0.0, 1e9):
        trainer = trainer_of(HALF)
        leg = leg_of(trainer, steps_of(24, 1e1), latents(), snapshot=snapshots.append, snapshot_seconds=seconds)
        with pytest.raises(
            TrainingDiverged, match=r"loss is nan at step \d+, with learning rate 10 .* alpha 128; give"
        ):
            go(trainer, leg)
            leg.end()
    assert len(snapshots) > 1
    for state in snapshots:
        assert_numbers(state)
    assert_numbers(trainer.members[0].state())


def test_an_update_to_what_is_no_number_is_not_the_end_of_a_link() -> None:
    trainer = trainer_of(torch.float32)
    leg = leg_of(trainer, steps_of(2, 1e-3), latents(math.nan))
    go(trainer, leg)
    with pytest.raises(TrainingDiverged, match="a factor of the LoRA is no longer a number after step 1"):
        leg.end()


def test_losses_that_are_no_numbers_count_across_an_interruption() -> None:
    steps, pictures = steps_of(12, 1e-3), latents(math.nan)
    trainer = trainer_of(HALF)
    leg = leg_of(trainer, steps, pictures)
    go(trainer, leg, 5)
    state = leg.state()
    assert_numbers(state)
    trainer = trainer_of(HALF)
    leg = leg_of(trainer, steps, pictures, state=state)
    go(trainer, leg, 8)
    with pytest.raises(TrainingDiverged, match="nan at step 7"):
        leg.state()


def test_short_links_that_skip_all_their_steps_do_not_go_on_for_ever() -> None:
    trainer = trainer_of(HALF)
    scale = trainer.members[0].loss_scale
    leg = leg_of(trainer, steps_of(2, 1e-3), latents(math.nan))
    scale.value.fill_(2.0**-14)
    go(trainer, leg, 1)
    leg.state()
    scale.value.fill_(2.0**-16)
    go(trainer, leg)
    with pytest.raises(TrainingDiverged, match="overflow float16 at every scale of the loss, as at step 1"):
        leg.end()
