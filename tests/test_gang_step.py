"""The step of a trainer with several members: cut batches, and states of captions that are kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train.objective import Pictures
from lorac.train.step import Member, Trainer, Turn
from lorac.train.switches import Switches
from lorac.train.text_states import TextStates
from tests.gang_bench import TEXT, TOKENS, UNET, Recipe, distance
from tests.small import base


def step_of(members: Sequence[tuple[int, Recipe]], split: int = 1, switches: Switches | None = None) -> list[Member]:
    """The members of a trainer after two steps."""
    unet, text = base(0, UNET, TEXT)
    made = [Member(LoRANetwork(unet, text, NetworkSettings(rank, 2.0), seed=rank)) for rank, _ in members]
    trainer = Trainer(unet, text, made, clip_skip=2, max_token_length=TOKENS, split=split, switches=switches)
    for index in range(2):
        turns: list[Turn | None] = [(recipe.schedule()[index], Pictures(recipe.latents)) for _, recipe in members]
        trainer.step(turns)
    return made


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_in_several_passes_gives_the_same_step(count: int) -> None:
    members = [(4, Recipe(4, steps=3, batch=3)), (2, Recipe(2, steps=3, seed=1, batch=5))][:count]
    whole, cut = step_of(members), step_of(members, split=2)
    for one, other in zip(whole, cut, strict=True):
        assert distance(other.state(), one.state()) <= 1e-4


def test_text_states_are_kept_without_a_trace_in_the_result() -> None:
    unet_states = []
    for kept in (True, False):
        unet, text = base(0, UNET, TEXT)
        member = Member(LoRANetwork(unet, text, NetworkSettings(4, 2.0), ["unet"], seed=1), trained=["unet"])
        switches = Switches(text_states=kept)
        trainer = Trainer(unet, text, [member], clip_skip=2, max_token_length=TOKENS, switches=switches)
        recipe, calls = Recipe(4, steps=3), list[int]()
        text.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for index in (0, 1, 0, 1, 2):
            trainer.step([(recipe.schedule()[index], Pictures(recipe.latents))])
        unet_states.append(member.state())
        assert len(calls) == (3 if kept else 5)
    assert all(torch.equal(tensor, unet_states[1][name]) for name, tensor in unet_states[0].items())


def test_text_states_stay_within_their_limit() -> None:
    _, text = base(0, UNET, TEXT)
    states = TextStates(text, 2, limit=2 * 77 * 16 * 4)
    ids = torch.randint(0, 49000, (5, 1, 77))
    for _ in range(2):
        torch.testing.assert_close(states.of(ids, torch.device("cpu"), torch.float32), text(ids, 2))
    assert len(states._kept) == 2
