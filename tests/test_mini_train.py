"""The embedded base's training: the optimiser against SVD, resuming, and the scaling of the latent space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorac.errors import TrainingDiverged
from lorac.mini import train as mini
from lorac.mini import world
from lorac.mini.data import prompt_rows, token_row
from lorac.mini.loop import Plan, Trainee, train
from lorac.mini.muon import Muon, orthogonal
from lorac.rng import Stream
from lorac.sd.clip import TextEncoder
from lorac.sd.tokenizer import BOS, EOS, Tokenizer
from lorac.sd.unet import UNet
from lorac.sd.vae import SCALE, VAE


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonal_is_near_the_svds(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    g_NRC = torch.randn(3, *shape)
    u, _, vt = torch.linalg.svd(g_NRC, full_matrices=False)
    ours, expected = orthogonal(g_NRC), u @ vt
    cosine = (ours * expected).sum(dim=(1, 2)) / ours.norm(dim=(1, 2)) / expected.norm(dim=(1, 2))
    assert float(cosine.min()) > 0.97
    # The quintic's fixed band (Jordan et al. 2024): it does not converge to 1, and need not.
    assert float(torch.linalg.svdvals(ours).min()) > 0.3
    assert float(torch.linalg.svdvals(ours).max()) < 1.3


def test_muons_update_has_adams_size() -> None:
    weight = nn.Parameter(torch.zeros(32, 8, 3, 3))
    weight.grad = torch.randn_like(weight)
    Muon([weight], lr=0.5).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.5 * 0.2, rel=0.2)
    assert float((weight.detach() * weight.grad).sum()) < 0


class Model(nn.Module):
    """One matrix, one vector, one embedding: one of each that the loop tells apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.embedding = nn.Embedding(5, 4)

    def loss_at(self, step: int, part: int) -> Tensor:
        stream = Stream(0, "test", step, part)
        row: Tensor = self.layer(self.embedding(torch.tensor([stream.below(5)])))
        return (row - stream.uniform()).square().mean()


def gradients(trainee: Trainee) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainee.named.items() if p.grad is not None}


def run(path: Path, show: Callable[[int], None] = lambda step: None) -> Trainee:
    model = Model()
    trainee = Trainee(model, Plan(steps=8, lr=1e-2, warmup=2, save_every=3, show_every=5, average_every=2))
    train(trainee, model.loss_at, show, path, parts=1)
    return trainee


def test_a_resumed_training_is_an_uninterrupted_one(tmp_path: Path) -> None:
    def stop(step: int) -> None:
        raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", show=stop)
    resumed = run(tmp_path / "cut")
    assert resumed.step == 8
    for name, parameter in whole.named.items():
        assert torch.equal(parameter, resumed.named[name])
        assert torch.equal(whole.average[name], resumed.average[name])


def test_parts_are_averaged(tmp_path: Path) -> None:
    """Two processes, two steps: the second must see the weights that the first one made."""
    model = Model()
    trainee = Trainee(model, Plan(steps=2, lr=1e-2, warmup=1, clip=1e9))
    seen: list[dict[str, Tensor]] = []
    weights: list[dict[str, Tensor]] = []

    def note(*_: object) -> None:
        seen.append(gradients(trainee))
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    trainee.muon.register_step_pre_hook(note)
    train(trainee, model.loss_at, lambda step: None, tmp_path / "x", parts=2)
    assert not torch.equal(weights[0]["layer.weight"], weights[1]["layer.weight"])
    for step in range(2):
        reference = Model()
        reference.load_state_dict(weights[step])
        torch.autograd.backward([reference.loss_at(step, part) / 2 for part in range(2)])
        for name, parameter in reference.named_parameters():
            assert parameter.grad is not None
            assert torch.allclose(seen[step][name], parameter.grad)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    model = Model()
    trainee = Trainee(model, Plan(steps=3, lr=1e-2, warmup=1))
    with pytest.raises(TrainingDiverged, match="step 1"):
        train(
            trainee, lambda step, part: model.loss_at(step, part) * float("nan"), lambda step: None, tmp_path / "x", 1
        )


@torch.no_grad()
def test_scaling_the_latents_leaves_the_pictures_as_they_are() -> None:
    torch.manual_seed(0)
    vae = VAE(mini.VAE_SIZES)
    x_BCHW = torch.rand(8, 3, 32, 32) * 2 - 1
    mean, logvar = vae.encode(x_BCHW)
    before = vae.decode(mean), logvar - 2 * mean.transpose(0, 1).flatten(1).std(dim=1).log()[:, None, None]
    mini.standardise(vae, x_BCHW)
    mean, logvar = vae.encode(x_BCHW)
    assert torch.allclose(vae.decode(mean), before[0], atol=1e-4)
    channels = (mean * SCALE).transpose(0, 1).flatten(1)
    assert torch.allclose(channels.mean(dim=1), torch.zeros(4), atol=1e-3)
    assert torch.allclose(channels.std(dim=1), torch.ones(4), atol=1e-3)
    noise_to_signal = logvar - 2 * mean.transpose(0, 1).flatten(1).std(dim=1).log()[:, None, None]
    assert torch.allclose(noise_to_signal, before[1], atol=1e-3)


@torch.no_grad()
def test_first_weights_predict_nothing_and_clip_skip_1_is_2() -> None:
    unet, text = UNet(mini.UNET), TextEncoder(mini.TEXT)
    mini.initialise(unet, text)
    ids_BL = prompt_rows(["1girl, smile"])
    assert torch.equal(text(ids_BL, 1), text(ids_BL, 2))
    eps = unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), text(ids_BL, 2))
    assert eps.shape == (1, 4, 8, 8)
    assert float(eps.abs().max()) < 0.1


def test_captions_are_shuffled_dropped_and_sometimes_empty() -> None:
    rows = [token_row(3, Stream(0, "caption", i)) for i in range(200)]
    tags = [Tokenizer().encode(tag) for tag in world.tags(world.sample(0, 3))]
    known = {token for tag in tags for token in tag} | {BOS, EOS, *Tokenizer().encode(",")}
    assert all(row[0] == BOS and len(row) == 77 for row in rows)
    assert 5 <= sum(row[1] == EOS for row in rows) <= 40
    strange = [row for row in rows if not known.issuperset(row)]
    assert 20 <= len(strange) <= 80
    plain = [row for row in rows if row[1] != EOS and row not in strange]
    assert all(row[1 : 1 + len(tags[0])] == tags[0] for row in plain)
    assert len({tuple(row) for row in plain}) > 80
    assert token_row(3, Stream(0, "caption", 0)) == rows[0]
