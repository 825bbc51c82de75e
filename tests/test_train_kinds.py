"""What the kinds `train` and `validate` make of their ports, and a whole build with the features of training on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorac.engine.protocol import Item, Made
from lorac.kinds import train, validate
from lorac.rng import seed64
from lorac.sd.safetensors import deserialise, serialise
from lorac.train.loss import Loss
from lorac.train.objective import Objective, Pictures
from lorac.train.slices import Sample, Slice, Step, encode
from tests.one_item import of_blobs
from tests.running import lorac, refused
from tests.small import base
from tests.test_train_step import CLIP_SKIP, TOKENS, Reference, new_trainer, some_latents
from tests.tiny import make_project


def latent(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "mean": torch.randn(4, 2, 3, generator=generator),
        "logvar": torch.tensor([-50.0, -2.0, 0.0, 60.0])[:, None, None].expand(4, 2, 3).clone(),
    }


def test_latents_and_masks_are_counted_through_all_sets() -> None:
    latents = [latent(i) for i in range(4)]
    blobs = {b"l%d" % i: serialise(tensors, {}) for i, tensors in enumerate(latents)}
    blobs |= {
        b"f1": serialise(latent(9), {}),
        b"opaque": b"",
        b"mask": b"P5\n24 16\n255\n" + bytes([10, 255] * 12 * 16),
    }
    columns: dict[str, Sequence[bytes]] = {
        "latent.1": [b"l1", b"l2"],
        "latent.0": [b"l0"],
        "latent.10": [b"l3"],
        "flipped.1": [b"f1", b"f1"],
        "mask.1": [b"opaque", b"mask"],
    }
    found = train.pictures(of_blobs(blobs, columns=columns))
    assert len(found.latents) == 4
    assert all(torch.equal(found.latents[i], latents[i]["mean"]) for i in range(4))
    assert [flipped is None for flipped in found.flipped] == [True, False, False, True]
    assert [mask is None for mask in found.masks] == [True, True, False, True]
    mask = found.masks[2]
    assert mask is not None and mask.shape == (16, 24)
    torch.testing.assert_close(mask[5, :4], torch.tensor([10, 255, 10, 255]) / 255)

    sampled = train.pictures(of_blobs(blobs, columns=columns), "sample", 23)
    for i, kind, tensors, ours in [
        (2, "latent", latents[2], sampled.latents[2]),
        (1, "flipped", latent(9), sampled.flipped[1]),
    ]:
        noise = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(seed64(23, kind, i))).double()
        deviation = (tensors["logvar"].double().clamp(-30, 20) / 2).exp()
        assert ours is not None
        torch.testing.assert_close(ours.double(), tensors["mean"].double() + deviation * noise, rtol=1e-5, atol=1e-6)


def test_the_validation_loss_is_diffusers_mean_error() -> None:
    latents = some_latents(2, size=8)
    samples = [Sample(i, t, 50 + 10 * i + t, 1.0, [320, 267 + i]) for i, t in ((0, 200), (1, 800))]
    steps = Slice.of([Step(n, 0.0, 0.0, [[sample]]) for n, sample in enumerate(samples)], 0, TOKENS)
    tensors = [new_trainer().lora.state()]
    tensors.append({name: t if t.dim() == 0 else t * 3 for name, t in tensors[0].items()})
    unet, text_encoder = base()
    blobs = {
        b"steps": encode(steps),
        b"unet": serialise(unet.state_dict(), {"lorac.config": json.dumps({"heads": 4, "groups": 8})}),
        b"text": serialise(text_encoder.state_dict(), {"lorac.config": json.dumps({"heads": 4})}),
    }
    blobs |= {b"lora%d" % i: serialise(lora, {}) for i, lora in enumerate(tensors)}
    blobs |= {b"l%d" % i: serialise({"mean": mean, "logvar": mean}, {}) for i, mean in enumerate(latents)}
    made = list(
        validate.run(
            of_blobs(
                blobs,
                params={"clip_skip": CLIP_SKIP, "loss": {"loss_type": "l2"}, "prediction": {}},
                items=[Item(i, "", {}, {"lora": b"lora%d" % i}) for i in range(2)],
                shared={"unet": b"unet", "text": b"text", "validation": b"steps"},
                columns={"latent.0": [b"l0", b"l1"]},
            )
        )
    )
    with torch.no_grad():
        without = {name: t if t.dim() == 0 else t * 0 for name, t in tensors[0].items()}
        expected = [
            float(torch.stack([Reference(*base(), lora).loss(step, latents) for step in steps.steps()]).mean())
            for lora in (without, *tensors)
        ]
    for index, item in enumerate(made):
        assert isinstance(item, Made) and item.index == index
        losses = json.loads(item.outputs["losses"])  # type: ignore[arg-type]
        assert losses == pytest.approx({"base": expected[0], "lora": expected[index + 1]}, rel=1e-5)
    assert len({*expected}) == 3


def test_the_objective_of_params_has_their_settings() -> None:
    loss = {"noise_offset": 0.1, "min_snr_gamma": 5.0, "prior_loss_weight": 3.0, "loss_type": "l1"}
    objective = Objective.of(loss, {"v_parameterization": True, "zero_terminal_snr": True})
    assert objective.noise.noise_offset == 0.1
    assert objective.loss == Loss(True, True, loss_type="l1", min_snr_gamma=5.0)
    assert Objective.of({}, {}) == Objective()
    assert Pictures([]).masks == ()


FEATURES = [
    "train.optimizer=lion", "train.ema_decay=0.5", "train.gradient_accumulation_steps=2", "train.flip_aug=true",
    "train.latents=sample", "network.dropout=0.1", "network.scale_weight_norms=1", "train.loraplus_lr_ratio=4",
    "loss.loss_type=huber", "loss.noise_offset=0.05", "loss.min_snr_gamma=5", "loss.ip_noise_gamma=0.1",
    "loss.multires_noise_iterations=4", "validation.split=0.4",
]  # fmt: skip


def test_a_build_with_all_features_measures_its_files(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lion_pytorch")
    monkeypatch.chdir(make_project(tmp_path, tiny_base))
    sets = [word for setting in FEATURES for word in ("--set", setting)]
    done = lorac("build", "recipe.toml", *sets)
    assert done.exit_code == 0, done.output
    (page,) = tmp_path.rglob("report.html")
    text = page.read_text(encoding="utf-8")
    assert "Loss of held-out pictures" in text and "Without the LoRA" in text and "(lowest)" in text
    file = next(path for path in tmp_path.rglob("*.safetensors") if "recipe" in path.name)
    tensors, _ = deserialise(file.read_bytes(), "lora")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_up" in name)


def test_a_split_that_holds_nothing_out_is_refused_before_training(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path, tiny_base)
    monkeypatch.chdir(tmp_path)
    message = "0.1 of 3 pictures holds out none for validation; give at least 0.34"
    assert refused("build", "recipe.toml", "--set", "validation.split=0.1") == [f"split in [validation]: {message}"]
    assert not Path("build/recipe/recipe.safetensors").exists()
    assert message in lorac("plan", "recipe.toml", "--set", "validation.split=0.1").output
