"""Every form in which a base or a VAE comes, against the models that were written; pickles that are refused."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorac.errors import InputError
from lorac.sd import checkpoint, formats, layout, parts
from lorac.sd.clip import TextConfig
from lorac.sd.unet import UNetConfig
from lorac.sd.vae import VAEConfig
from tests import fullsize
from tests.fullsize import Base, State

# Groups and heads are SD1.x's, so that files without metadata load.
SMALL = {
    "unet": UNetConfig(width=32, context=64),
    "vae": VAEConfig(width=32),
    "text": TextConfig(width=64, layers=2, heads=1, inner=128, vocabulary=500),
}


@pytest.fixture(scope="module")
def base() -> Base:
    return fullsize.draw(5, **SMALL)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "模型 フォルダ"
    made.mkdir()
    return made


def safetensors(base: Base, path: Path, dtype: torch.dtype) -> Path:
    path = path.with_suffix(".safetensors")
    fullsize.save_safetensors(base, path, dtype)
    return path


def safetensors_without_metadata(base: Base, path: Path, dtype: torch.dtype) -> Path:
    save_file(whole(fullsize.ldm_state(base, dtype)), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def ckpt_with_ema(base: Base, path: Path, dtype: torch.dtype) -> Path:
    fullsize.save_ckpt(base, path.with_suffix(".ckpt"), dtype)
    return path.with_suffix(".ckpt")


def bare_ckpt(base: Base, path: Path, dtype: torch.dtype) -> Path:
    torch.save(fullsize.ldm_state(base, dtype), path.with_suffix(".ckpt"))
    return path.with_suffix(".ckpt")


def nai_ckpt(base: Base, path: Path, dtype: torch.dtype) -> Path:
    """NovelAI's text encoder lacks a level; its positions are floats; there is more that is of no use here."""
    level = "cond_stage_model.transformer."
    state = {key.replace(f"{level}text_model.", level): value for key, value in fullsize.ldm_state(base, dtype).items()}
    state |= {
        f"{level}embeddings.position_ids": torch.arange(77, dtype=torch.float32)[None],
        f"{level}text_projection.weight": torch.ones(64, 64),
        "cond_stage_model.logit_scale": torch.ones(()),
        "embedding_manager.string_to_param.x": torch.ones(2),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "first_stage_model.model_ema.decay": torch.zeros(()),
        "scale_factor": torch.tensor(0.18215),
        "lvlb_weights": torch.ones(1000),
    }
    torch.save({"state_dict": state, "callbacks": {}}, path.with_suffix(".ckpt"))
    return path.with_suffix(".ckpt")


def diffusers_folder(base: Base, path: Path, dtype: torch.dtype) -> Path:
    fullsize.pipeline(base.to(dtype)).save_pretrained(path)
    return path


def diffusers_fp16_variant(base: Base, path: Path, dtype: torch.dtype) -> Path:
    fullsize.pipeline(base.to(dtype)).save_pretrained(path, variant="fp16")
    assert (path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    return path


def diffusers_bin(base: Base, path: Path, dtype: torch.dtype) -> Path:
    """As in 2022: pickles, and the old names in the VAE's attention."""
    diffusers_folder(base, path, dtype)
    for file in path.rglob("*.safetensors"):
        state = load_file(file)
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            if file.parent.name == "vae":
                state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for key, v in state.items()}
        name = "pytorch_model.bin" if file.parent.name == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(state, file.with_name(name))
        file.unlink()
    return path


WRITERS: dict[str, Callable[[Base, Path, torch.dtype], Path]] = {
    f.__name__: f
    for f in (
        safetensors,
        safetensors_without_metadata,
        ckpt_with_ema,
        bare_ckpt,
        nai_ckpt,
        diffusers_folder,
        diffusers_fp16_variant,
        diffusers_bin,
    )
}


def whole(state: State) -> State:
    return {key: tensor.contiguous() for key, tensor in state.items()}


def assert_equal(found: State, model: torch.nn.Module, dtype: torch.dtype) -> None:
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == dtype, key
        assert torch.equal(found[key], tensor.to(dtype)), key


CASES = [(form, torch.float16) for form in WRITERS] + [
    (form, dtype) for form in ("safetensors", "ckpt_with_ema") for dtype in (torch.bfloat16, torch.float32)
]


@pytest.mark.parametrize(("form", "dtype"), CASES, ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_written_is_read(base: Base, folder: Path, form: str, dtype: torch.dtype) -> None:
    path = WRITERS[form](base, folder / "基", dtype)
    layout.base_config(path, "x")
    found, config = parts.open_base(path, "x")
    for part, model in ((found.unet, base.unet), (found.vae, base.vae), (found.text, base.text)):
        assert_equal(part, model, dtype)
    checkpoint.check(found, config, "x", "x")
    assert (config.unet, config.vae.groups, config.resolution) == (base.config.unet, 32, 512)
    text = checkpoint.load_text(found.text, config.text.heads)
    ids = torch.arange(77)[None]
    expected = base.text if dtype is torch.float32 else base.to(dtype).to(torch.float32).text
    assert torch.equal(text(ids), expected(ids))


# -- VAEs --------------------------------------------------------------------------------------------------------------


def vae_state(base: Base) -> State:
    prefix = "first_stage_model."
    found = {
        k.removeprefix(prefix): v for k, v in fullsize.ldm_state(base, torch.float16).items() if k.startswith(prefix)
    }
    return whole(found)


def vae_prefixed(base: Base, path: Path) -> Path:
    save_file({f"first_stage_model.{key}": value for key, value in vae_state(base).items()}, path.with_suffix(".x"))
    return path.with_suffix(".x")


def vae_bare(base: Base, path: Path) -> Path:
    save_file(vae_state(base), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def vae_pt(base: Base, path: Path) -> Path:
    """As vae-ft-mse-840000-ema-pruned.ckpt and Anything's .vae.pt: wrapped, with what training left."""
    rest = {
        "loss.logvar": torch.zeros(()),
        "model_ema.decay": torch.zeros(()),
        "model_ema.encoderconv_inbias": torch.ones(32),
    }
    torch.save({"epoch": 1, "state_dict": {**vae_state(base), **rest}}, path.with_suffix(".vae.pt"))
    return path.with_suffix(".vae.pt")


def vae_folder(base: Base, path: Path) -> Path:
    fullsize.diffusers_models(base.to(torch.float16))[1].save_pretrained(path)
    return path


def vae_of_a_diffusers_folder(base: Base, path: Path) -> Path:
    vae_folder(base, path / "vae")
    return layout.vae_place(path)


def vae_file_with_diffusers_names(base: Base, path: Path) -> Path:
    return vae_folder(base, path) / "diffusion_pytorch_model.safetensors"


def vae_of_a_checkpoint(base: Base, path: Path) -> Path:
    return safetensors(base, path, torch.float16)


VAES: dict[str, Callable[[Base, Path], Path]] = {
    f.__name__: f
    for f in (
        vae_prefixed,
        vae_bare,
        vae_pt,
        vae_folder,
        vae_of_a_diffusers_folder,
        vae_file_with_diffusers_names,
        vae_of_a_checkpoint,
    )
}


@pytest.mark.parametrize("form", VAES)
def test_vaes_of_their_own(base: Base, folder: Path, form: str) -> None:
    path = VAES[form](base, folder / "変分")
    assert layout.vae_config(path, "x").groups == 32
    state, groups = parts.open_vae(path, "x")
    assert groups.groups == 32
    assert_equal(state, base.vae, torch.float16)


# -- files that are not read -------------------------------------------------------------------------------------------


class Bomb:
    """A pickle that makes a folder when it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        parts.open_base(path, path.name)
    (problem,) = error.value.problems
    assert problem.remedy
    return f"{problem.where}: {problem.cause}; {problem.remedy}"


def test_code_in_a_pickle_is_not_run(base: Base, folder: Path) -> None:
    path = folder / "基 bomb.ckpt"
    torch.save({**fullsize.ldm_state(base, torch.float16), "callbacks": Bomb(folder / "harm")}, path)
    text = refusal(path)
    assert "基 bomb.ckpt: this pickle needs code to be read (posix.mkdir)" in text.replace("nt.mkdir", "posix.mkdir")
    assert "convert it to .safetensors" in text
    assert not (folder / "harm").exists()
    torch.load(path, weights_only=False)
    assert (folder / "harm").is_dir(), "the bomb is a real one"


@pytest.mark.parametrize("protocol", ["old torch", "plain pickle", "text", "empty", "truncated", "list", "no tensors"])
def test_files_that_are_no_checkpoints(base: Base, folder: Path, protocol: str) -> None:
    path = folder / "基.ckpt"
    torch.save(fullsize.ldm_state(base, torch.float16), path)
    data = path.read_bytes()
    expected = "not a .ckpt file as torch saves them"
    if protocol == "old torch":
        torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
        expected = "saved by torch before 1.6"
    elif protocol == "plain pickle":
        path.write_bytes(pickle.dumps({"x": 1}))
    elif protocol == "text":
        path.write_text("a checkpoint, surely", "utf-8")
    elif protocol == "empty":
        path.write_bytes(b"")
    elif protocol == "truncated":
        path.write_bytes(data[: len(data) // 2])
        expected = "this file is not whole"
    else:
        torch.save([torch.ones(2)] if protocol == "list" else {"x": 1}, path)
        expected = "there are no tensors with names"
    assert expected in refusal(path)


def test_a_damaged_pickle_in_a_whole_zip(base: Base, folder: Path) -> None:
    """Whatever torch says of it, the user gets a message and no traceback."""
    path, broken, refused = folder / "基.ckpt", folder / "壊.ckpt", 0
    torch.save(fullsize.ldm_state(base, torch.float16), path)
    for number in range(4):
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(broken, "w") as new:
            for entry in old.infolist():
                data = bytearray(old.read(entry))
                if entry.filename.endswith("data.pkl"):
                    place = 7 + number * len(data) // 5
                    data[place : place + 3] = b"\xff\x00."
                new.writestr(entry.filename, bytes(data))
        try:
            parts.open_base(broken, broken.name)
        except InputError as error:
            refused += 1
            assert all(problem.where == broken.name and problem.remedy for problem in error.problems)
    assert refused


def test_a_header_whose_length_begins_as_a_zip_does(folder: Path) -> None:
    path = folder / "x.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    length = int.from_bytes(b"PK\0\0\0\0\0\0", "little")
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(4))
    tensors, _ = formats.read(path, "x")
    assert torch.equal(tensors["x"], torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_quantised_checkpoints_are_refused(base: Base, folder: Path, dtype: torch.dtype) -> None:
    state = whole(fullsize.ldm_state(base, torch.float16))
    key = "model.diffusion_model.out.2.weight"
    state[key] = state[key].to(dtype)
    save_file(state, folder / "q.safetensors")
    name = str(dtype).removeprefix("torch.")
    assert f"tensors of type {name}; use a version in fp16, bf16 or fp32" in refusal(folder / "q.safetensors")


def test_memory_is_mapped_and_not_held(base: Base, folder: Path) -> None:
    """Tensors of a file lie side by side in one mapping of it, and not in memory of their own."""
    for form in (safetensors, bare_ckpt):
        tensors = formats.read(form(base, folder / "m", torch.float32), "x")[0]
        size = sum(tensor.nbytes for tensor in tensors.values())
        places = [tensor.data_ptr() for tensor in tensors.values()]
        assert max(places) - min(places) < 1.1 * size, form.__name__
        mapped = Path("/proc/self/maps")
        if mapped.exists():
            assert "/m." in mapped.read_text("utf-8"), form.__name__
