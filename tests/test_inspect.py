"""`lorac inspect` on the networks that there are, and on files of strangers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorac.errors import InputError
from lorac.export import lora_file
from lorac.inspect import facts, lines
from lorac.sd import safetensors

TE, UNET = "lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_mid_block_resnets_0_conv1"


def module(name: str, rank: int, alpha: float, kernel: tuple[int, ...] = ()) -> dict[str, Tensor]:
    ones = (1,) * len(kernel)
    return {
        f"{name}.lora_down.weight": torch.zeros(rank, 8, *kernel),
        f"{name}.lora_up.weight": torch.zeros(8, rank, *ones),
        f"{name}.alpha": torch.tensor(alpha),
    }


def shown(folder: Path, tensors: dict[str, Tensor], texts: dict[str, str] | None = None) -> list[str]:
    path = folder / "x.safetensors"
    path.write_bytes(lora_file(tensors, texts or {}, "bf16"))
    return [line.strip() for line in lines(facts(path))]


def test_equal_sizes_are_one_line(tmp_path: Path) -> None:
    text = shown(tmp_path, module(TE, 4, 2.0) | module(UNET, 4, 2.0, (1, 1)))
    assert {"kind        LoRA", "modules     1 text encoder, 1 U-Net", "rank        4 (2)", "alpha       2 (2)"} <= {
        *text
    }


def test_different_sizes_are_told_by_part(tmp_path: Path) -> None:
    tensors = module(TE, 4, 2.0) | module(UNET, 4, 2.0, (1, 1)) | module(CONV, 10, 2.0, (3, 3))
    text = shown(tmp_path, tensors, {"modelspec.prediction_type": "v", "ss_network_args": '{"conv_dim": "10"}'})
    rank = text.index("rank        text encoder: 4 (1)")
    assert text[rank + 1] == "U-Net: 4 (1), 10 (1)"
    assert {"kind        LoCon", "alpha       2 (3)", "prediction  v", "settings    conv_dim=10"} <= {*text}


def test_a_dora_and_other_kinds_are_called_by_their_names(tmp_path: Path) -> None:
    dora = module(TE, 4, 2.0) | {f"{TE}.dora_scale": torch.ones(1, 8)}
    path = tmp_path / "x.safetensors"
    kinds = {}
    for name, tensors in {
        "dora": dora,
        "loha": {f"{TE}.hada_w1_a": torch.zeros(2, 2)},
        "lokr": {f"{TE}.lokr_w1": torch.zeros(2, 2)},
        "peft": {"unet.down_blocks.0.lora_A.weight": torch.zeros(2, 2)},
        "other": {"weight": torch.zeros(2)},
    }.items():
        safetensors.write(path, tensors, {})
        kinds[name] = facts(path)["kind"]
    assert kinds == {
        "dora": "DoRA",
        "loha": "LoHa",
        "lokr": "LoKr",
        "peft": "LoRA with PEFT's names",
        "other": "no LoRA",
    }


def test_strange_tensors_and_texts_are_shown_and_not_stumbled_over(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {f"{TE}.lora_down.weight": torch.tensor(1.0), f"{TE}.alpha": torch.ones(3)}
    safetensors.write(path, tensors, {"ss_network_args": '{"a": "\\n\\u001b[2J"', "modelspec.prediction_type": "x\ny"})
    text = lines(facts(path))
    assert "  rank        0 (1)" in text
    assert "  alpha       nan (1)" in text
    assert not any("\n" in line for line in text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a text that is longer than eight bytes", "this is no safetensors file; give"),
        (b"", "this is no safetensors file; give"),
        (b"PK\x03\x04 and so on", "no safetensors file, but a .ckpt or another archive; give"),
        (b"\x02\0\0\0\0\0\0\0{}and more", "this is not a valid safetensors file"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        facts(path)
    assert words in str(caught.value.problems[0])
