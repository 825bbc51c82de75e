"""Networks trained side by side: each is what it would be alone, whatever the others' ranks, and can leave."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.lora_names import PARTS
from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.joint import JointStack, joint_stacks
from lorac.train.fused.linear import Adapted
from lorac.train.helper import Inline
from lorac.train.loss_scale import LossScale
from lorac.train.optimiser import AdamW, Optimisation
from tests.adapted import layers_of, stack_of
from tests.small import base

SIZES = [(2, 2.0), (5, 1.0), (3, 6.0)]


class Gang:
    """Networks that learn from random inputs and gradients, of which each network's depend on its own number alone."""

    def __init__(self, networks: dict[int, LoRANetwork]) -> None:
        self.networks = networks
        settings = Optimisation(weight_decay=0.1)
        scale = LossScale(torch.device("cpu"), needed=False)
        self.optimisers = {
            n: AdamW(lora, PARTS, settings, scale, lambda stack: None, Inline()) for n, lora in networks.items()
        }
        self.join()

    def join(self) -> None:
        self.stacks = [StackGradients(stack, lambda _: None) for stack in joint_stacks(list(self.networks.values()))]

    def leave(self, number: int) -> LoRANetwork:
        del self.optimisers[number]
        left = self.networks.pop(number)
        self.join()
        return left

    def step(self, index: int) -> list[Tensor]:
        """The norms of the first stack."""
        rows = 3
        norms = []
        for number, gradients in enumerate(self.stacks):
            _, modules, outputs, _ = gradients.stack.up_NMOR.shape
            inputs = gradients.stack.down_NMRI.shape[3]
            xs, dys = [], []
            for n in self.networks:
                generator = torch.Generator().manual_seed(1000 * index + 10 * number + n)
                xs.append(torch.randn(rows, inputs, generator=generator))
                dys.append(torch.randn(rows, modules * outputs, generator=generator))
            Adapted(gradients, 0, modules).record(torch.cat(xs), torch.cat(dys))
            norms.append(gradients.finish())
        for n, optimiser in self.optimisers.items():
            optimiser.apply(torch.ones(()), {"unet": 1e-2 * (n + 1), "text_encoder": 1e-2})
            optimiser.settle()
        for stack in (stack for gradients in self.stacks for stack in gradients.stack.stacks):
            stack.merge()
        return norms[0]


def networks(merged: bool, numbers: Sequence[int]) -> dict[int, LoRANetwork]:
    unet, text_encoder = base()
    sizes = {n: NetworkSettings(*SIZES[n]) for n in numbers}
    return {n: LoRANetwork(unet, text_encoder, size, seed=n, merged=merged) for n, size in sizes.items()}


def same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert ours.keys() == expected.keys()
    assert all(ours[name].shape == tensor.shape for name, tensor in expected.items())
    return all((ours[name] - tensor).norm() <= 1e-5 * tensor.norm() for name, tensor in expected.items())


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "added"])
def test_a_member_learns_what_it_learns_alone_and_may_leave(merged: bool) -> None:
    gang = Gang(networks(merged, [0, 1, 2]))
    alone = {n: Gang(networks(merged, [n])) for n in range(3)}
    for index in range(4):
        if index == 2:
            left = gang.leave(1)
            frozen = {name: tensor.clone() for name, tensor in left.state().items()}
        norms = gang.step(index)
        for norm, n in zip(norms, gang.networks, strict=True):
            torch.testing.assert_close(norm, alone[n].step(index)[0])
        if index == 1:
            assert same(gang.networks[1].state(), alone[1].networks[1].state())
    for n in (0, 2):
        assert same(gang.networks[n].state(), alone[n].networks[n].state())
        ours, expected = gang.optimisers[n].state(), alone[n].optimisers[n].state()
        assert same(ours, expected)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in left.state().items())


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "added"])
def test_zeros_that_fill_up_a_rank_stay_zeros(merged: bool) -> None:
    gang = Gang(networks(merged, [0, 1]))
    for index in range(3):
        gang.step(index)
    for stack in gang.networks[0].stacks:
        assert stack.down_MRI.shape[1] == 5 and stack.rank == 2
        assert stack.down_MRI[:, :2].all() and not stack.down_MRI[:, 2:].any() and not stack.up_MOR[:, :, 2:].any()


def test_a_state_is_taken_into_a_gang_and_its_weights_are_merged() -> None:
    lone = networks(True, [0])[0]
    for stack in lone.stacks:
        stack.up_MOR.data.normal_()
    gang = Gang(networks(True, [0, 1]))
    gang.networks[0].load_state(lone.state())
    lone.refresh()
    for ours, expected in zip(gang.stacks, lone.stacks, strict=True):
        torch.testing.assert_close(ours.stack.merged_NMOI[0], expected.merged_MOI)
    gang.networks[0].scale_weight_norms(0.5)
    lone.scale_weight_norms(0.5)
    assert same(gang.networks[0].state(), lone.state())
    torch.testing.assert_close(gang.stacks[0].stack.merged_NMOI[0], lone.stacks[0].merged_MOI)


def test_one_network_is_not_copied() -> None:
    layers = layers_of(2, 4, 6, bias=True)
    stacks = [stack_of(layers, True, *sizes) for sizes in SIZES]
    before = stacks[0].down_MRI.data_ptr()
    assert JointStack(stacks[:1]).down_NMRI.data_ptr() == before == stacks[0].down_MRI.data_ptr()


def test_other_modules_cannot_be_joined() -> None:
    unet, text_encoder = base()
    whole = LoRANetwork(unet, text_encoder, NetworkSettings(2, 2.0))
    half = LoRANetwork(unet, text_encoder, NetworkSettings(2, 2.0), targets=("unet",))
    added = LoRANetwork(unet, text_encoder, NetworkSettings(2, 2.0), merged=False)
    for others in (half, added):
        with pytest.raises(ValueError, match="cannot be joined"):
            joint_stacks([whole, others])


def test_factors_are_read_in_the_dtype_of_the_base() -> None:
    layers = [layer.bfloat16() for layer in layers_of(2, 4, 6, bias=True)]
    stacks = [stack_of(layers, False, *sizes) for sizes in SIZES]
    joint = JointStack(stacks)
    assert joint.read_up_NMOR.dtype == torch.bfloat16
    stacks[1].up_MOR.data.normal_()
    stacks[1].merge()
    assert torch.equal(joint.read_up_NMOR, joint.up_NMOR.bfloat16())
