"""The text encoder against transformers' own forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.layers import Linear
from lorac.sd.tokenizer import Tokenizer, chunk

CONFIG = TextConfig(width=64, layers=3, heads=4, inner=128)


@pytest.fixture(scope="module")
def pair() -> tuple[TextEncoder, CLIPTextModel]:
    torch.manual_seed(0)
    theirs = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=CONFIG.width,
            intermediate_size=CONFIG.inner,
            num_hidden_layers=CONFIG.layers,
            num_attention_heads=CONFIG.heads,
            hidden_act="quick_gelu",
            vocab_size=CONFIG.vocabulary,
            eos_token_id=2,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = TextEncoder(CONFIG)
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    return ours, theirs


def hidden(model: CLIPTextModel, ids_BL: Tensor, clip_skip: int) -> Tensor:
    """kohya's definition (sd-scripts strategy_sd.py): `hidden_states[-clip_skip]`, then the final LayerNorm."""
    states = model(ids_BL, output_hidden_states=True).hidden_states
    normed: Tensor = getattr(model, "text_model", model).final_layer_norm(states[-clip_skip])
    return normed


def rows(length: int) -> Tensor:
    ids = [Tokenizer().encode(text) for text in ("1girl, school uniform, standing", ", ".join(["long hair"] * 60))]
    return torch.tensor([chunk(row, length) for row in ids])


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
@torch.no_grad()
def test_states_equal_transformers(pair: tuple[TextEncoder, CLIPTextModel], clip_skip: int) -> None:
    ours, theirs = pair
    ids_BL = rows(75)[:, 0]
    expected = hidden(theirs, ids_BL, clip_skip)
    assert float((ours(ids_BL, clip_skip) - expected).norm() / expected.norm()) <= 1e-5


@torch.no_grad()
def test_clip_skip_1_is_the_last_hidden_state(pair: tuple[TextEncoder, CLIPTextModel]) -> None:
    ours, theirs = pair
    ids_BL = rows(75)[:, 0]
    assert torch.allclose(ours(ids_BL), theirs(ids_BL).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize("length", [75, 150, 225])
@pytest.mark.parametrize("clip_skip", [1, 2])
@torch.no_grad()
def test_chunks_are_joined_as_kohya_does(pair: tuple[TextEncoder, CLIPTextModel], length: int, clip_skip: int) -> None:
    ours, theirs = pair
    ids_BKL = rows(length)
    chunks = [hidden(theirs, ids_BL, clip_skip) for ids_BL in ids_BKL.unbind(1)]
    expected = torch.cat([chunks[0][:, :1], *(states[:, 1:-1] for states in chunks), chunks[-1][:, -1:]], dim=1)
    states = ours(ids_BKL, clip_skip)
    assert states.shape == (2, length + 2, CONFIG.width)
    assert float((states - expected).norm() / expected.norm()) <= 1e-5


def test_skipped_layers_are_not_run() -> None:
    encoder = TextEncoder(CONFIG)
    encoder.text_model.encoder.layers[-1].register_forward_hook(lambda *_: pytest.fail("the last layer was run"))
    encoder(rows(75)[:, 0], clip_skip=2)


def test_the_layers_that_a_lora_attaches_to() -> None:
    encoder = TextEncoder(TextConfig(width=64, layers=12, heads=1, inner=64))
    linears = {name for name, module in encoder.named_modules() if isinstance(module, Linear)}
    assert linears == {
        f"text_model.encoder.layers.{i}.{name}"
        for i in range(12)
        for name in (*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
    }
