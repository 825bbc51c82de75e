"""Drawing in batches: a picture is the same whatever else is drawn, on however many cores; so diffusers draws it."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete
from safetensors.torch import save
from torch import Tensor

from lorac.digest import digest
from lorac.engine.protocol import Made, Work
from lorac.errors import Interrupted
from lorac.kinds import weights
from lorac.rng import seed64
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.studio import Settings, Studio, batch, to_image
from tests.loras import fill
from tests.one_item import of_blobs
from tests.small import diffusers_unet

SETTINGS = Settings(steps=3, cfg_scale=4.0, sampler="euler_a", seed=5, width=64, height=48, clip_skip=2, prediction={})
TEXTS = ("1girl, smile", "hat")


@pytest.fixture(scope="module")
def work(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The models of the tiny base, and a LoRA for them."""
    scratch = tmp_path_factory.mktemp("studio")
    (made,) = weights.run(
        of_blobs({}, hints={"base": str(tiny_base)}, shared={"base": digest(tiny_base.read_bytes())}, scratch=scratch)
    )
    assert isinstance(made, Made)
    parts = {port: Path(str(made.outputs[port])) for port in weights.OUTPUTS}
    network = LoRANetwork(weights.unet(parts["unet"]), weights.text_encoder(parts["text"]), NetworkSettings(4, 4.0))
    fill(network, size=0.3)
    lora = save({name: tensor.contiguous() for name, tensor in network.state().items()})
    blobs = {port.encode(): path.read_bytes() for port, path in parts.items()} | {b"lora": lora}
    return of_blobs(blobs, shared={port: port.encode() for port in parts})


def drawn(studio: Studio, numbers: list[int], strength: float = 1.0) -> list[bytes]:
    return [picture.tobytes() for picture in studio.draw(*TEXTS, SETTINGS, numbers, strength)]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_number_is_in_one_batch(size: int) -> None:
    for number in range(40):
        assert number in batch(number, size) and len(batch(number, size)) <= size
        assert all(batch(other, size) == batch(number, size) for other in batch(number, size))
    assert batch(0, size) == range(1)


def test_large_pictures_are_drawn_in_small_batches() -> None:
    def size(width: int, height: int) -> int:
        return Settings(1, 1.0, "ddim", 0, width, height, 1, {}).batch

    assert [size(128, 128), size(512, 512), size(512, 768), size(1024, 1024), size(4096, 4096)] == [8, 8, 5, 2, 1]


@pytest.mark.parametrize("lora", [None, b"lora"])
def test_bits_depend_on_neither_company_nor_cores(work: Work, lora: bytes | None) -> None:
    studio, before = Studio(work, lora=lora), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        studio.workers = 1
        alone = drawn(studio, list(range(12)))
        assert len(set(alone)) == 12
        studio.workers = 2
        for numbers in (list(range(12)), [9], [11, 0, 3]):
            assert drawn(studio, numbers) == [alone[number] for number in numbers]
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert drawn(studio, [5, 8]) == [alone[5], alone[8]]
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_a_batch_is_what_diffusers_draws_one_by_one(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' U-Net, guidance and scheduler, with our text encoder and VAE, which have tests of their own."""

    def normal(purpose: str, *counters: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed64(SETTINGS.seed, purpose, *counters) >> 1)
        return torch.randn((1, 4, 6, 8), generator=generator)

    studio = Studio(work, lora=None)
    unet, states = diffusers_unet(studio.unet), studio._states(TEXTS, 2)
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    for number, picture in studio.stream(*TEXTS, SETTINGS, [0, 2, 7]):
        scheduler.set_timesteps(SETTINGS.steps)
        draws = iter(range(SETTINGS.steps))
        monkeypatch.setattr(
            scheduling_euler_ancestral_discrete,
            "randn_tensor",
            lambda *_, n=number, d=draws, **__: normal("step noise", n, next(d)),
        )
        x_BCHW = normal("sample noise", number) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            out, without = (unet(scheduler.scale_model_input(x_BCHW, t), t, ctx).sample for ctx in states)
            x_BCHW = scheduler.step(without + SETTINGS.cfg_scale * (out - without), t, x_BCHW).prev_sample
        expected = torch.frombuffer(
            bytearray(to_image(studio.vae.decode(x_BCHW / 0.18215)[0]).tobytes()), dtype=torch.uint8
        )
        found = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        assert int((found.int() - expected.int()).abs().max()) <= 1


def test_a_lora_counts_by_its_strength(work: Work) -> None:
    bare, studio = Studio(work, lora=None), Studio(work, lora=b"lora")
    full, half, off = (drawn(studio, [0, 1], strength) for strength in (1.0, 0.5, 0.0))
    assert off == drawn(bare, [0, 1])
    assert full != off and half not in (full, off)
    assert drawn(studio, [0, 1]) == full


def test_drawing_stops_when_the_build_is_stopped(work: Work) -> None:
    stopped = threading.Event()
    studio = Studio(dataclasses.replace(work, cancelled=stopped), lora=None)
    stopped.set()
    with pytest.raises(Interrupted):
        studio.draw(*TEXTS, SETTINGS, [0])


@pytest.mark.parametrize("lora", [None, b"lora"])
def test_keys_of_captions_are_made_once_for_all_steps_and_strengths_have_their_own(
    work: Work, lora: bytes | None
) -> None:
    """With the bits that they have when each step makes them anew."""
    studio = Studio(work, lora=lora)
    attentions = {path: one for path, one in studio.unet.named_modules() if path.endswith("attn2")}
    made: list[str] = []
    for path, attention in attentions.items():
        attention.to_k.register_forward_hook(lambda *_, path=path: made.append(path))
    shared = {strength: drawn(studio, [0, 1], strength) for strength in (1.0, 0.5)}
    assert sorted(made) == sorted([*attentions] * 4)  # two batches at two strengths
    made.clear()
    studio.unet.register_forward_pre_hook(lambda _, given: (*given[:2], given[2].states_BLC))
    assert {strength: drawn(studio, [0, 1], strength) for strength in (1.0, 0.5)} == shared
    assert len(made) == 4 * len(attentions) * SETTINGS.steps
    assert (shared[1.0] == shared[0.5]) == (lora is None)
