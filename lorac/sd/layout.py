"""Where a base or a VAE lies on the disk, and what it says of itself before any tensor is read. Needs no torch.

A single file is safetensors, or what torch saves: a zip with a pickle in it (`.ckpt`, `.pt`, `.bin`), of which only
torch can read more than that it is whole. A diffusers folder has one folder for each model:

    model_index.json  unet/config.json  unet/diffusion_pytorch_model.safetensors  vae/…  text_encoder/…  scheduler/…
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorac.errors import InputError, Problem
from lorac.sd import config, families
from lorac.sd.config import BaseConfig, VAEGroups
from lorac.sd.safetensors import Header, read_header

MODELS = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
"""Model → its folder."""

CONFIG_FILE = "config.json"
CONVERT = "convert it to .safetensors, as the checkpoint merger of AUTOMATIC1111's web UI does, or take such a version"

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16", ".bf16", ".fp32")
_OLD_PICKLE = b"\x80\x02\x8a\x0a"
"""How files of torch before 1.6 begin: a pickled long integer, the magic number."""
_ZIP = b"PK\x03\x04"
"""How a zip begins. A safetensors file can begin with PK, too: as a header's length; but not with all four."""

_PIPELINES = {
    "XL": "an SDXL model",
    "Inpaint": "an inpainting model",
    "InstructPix2Pix": "an instruct-pix2pix model",
    "Diffusion3": "an SD3 model",
    "Flux": "a Flux model",
    "ControlNet": "a ControlNet, not a base",
    "Autoencoder": "a VAE, not a base",
}
_VAE_SCALE = 0.18215
_AGAIN = "download the folder again, with its .safetensors"


def is_torch_file(path: Path) -> bool:
    """Whether a file is one that torch saved. Raises InputError for one that torch can only unpickle as a whole."""
    with path.open("rb") as file:
        start = file.read(len(_OLD_PICKLE))
    if start == _OLD_PICKLE:
        raise InputError.of(path, "this file was saved by torch before 1.6, which runs code when it is read", CONVERT)
    if start != _ZIP:
        if path.suffix.lower() in (".ckpt", ".pt", ".bin"):
            raise InputError.of(
                path, f"this is not a {path.suffix} file as torch saves them", "download or copy it again"
            )
        return False
    if not zipfile.is_zipfile(path):
        raise InputError.of(
            path, "this file is not whole: its end, the directory of the zip, is missing", "copy it again"
        )
    return True


def weights_file(folder: Path) -> Path | None:
    """The file with a model's tensors in its folder; safetensors before .bin, full precision before variants."""
    for ending in (".safetensors", ".bin"):
        for variant in _VARIANTS:
            for stem in _STEMS:
                if (path := folder / f"{stem}{variant}{ending}").is_file():
                    return path
    return None


def files(path: Path) -> list[Path]:
    """The files whose bytes make a base or a VAE what it is, sorted: the file itself, or those of its folder."""
    if not path.is_dir():
        return [path]
    folders = [path / name for name in MODELS.values()] if (path / "unet").is_dir() else [path]
    found = [file for folder in folders for file in (weights_file(folder), folder / CONFIG_FILE)]
    return sorted(file for file in found if file is not None and file.is_file())


def vae_place(path: Path) -> Path:
    """The VAE's own folder where `path` is a whole diffusers folder, else `path`."""
    return path / "vae" if (path / "vae").is_dir() else path


def base_config(path: Path, where: str, needs_vae: bool = True) -> BaseConfig:
    """What a base says of itself. Raises InputError, with `where` as the place, if it surely is no SD1.x base.

    Without `needs_vae`, because the recipe names another one, the base's VAE is not looked at and may be missing.
    Raises OSError when it cannot be read.
    """
    if path.is_dir():
        return _folder_config(path, where, needs_vae)
    if is_torch_file(path):
        return BaseConfig()
    header = read_header(path)
    _refuse(families.problems(_shapes(header), where, needs_vae))
    return file_config(header.metadata, header.tensors, where)


def file_config(metadata: Mapping[str, str], keys: Iterable[str], where: str) -> BaseConfig:
    """`config.of_file`, with an InputError for metadata that cannot be understood."""
    try:
        return config.of_file(metadata, set(keys))
    except (ValueError, TypeError, AttributeError) as error:
        cause = f"its {config.METADATA_KEY} metadata is not understood ({error})"
        raise InputError([Problem(where, cause, "save it again")]) from None


def vae_config(path: Path, where: str) -> VAEGroups:
    """What a VAE says of itself. Raises InputError if it surely is none of SD1.x, OSError when it cannot be read."""
    if path.is_dir():
        found: list[Problem] = []
        settings = _model_config(path, found)
        _refuse(found)
        scale = settings.get("scaling_factor", _VAE_SCALE)
        if "AutoencoderKL" not in str(settings.get("_class_name", "AutoencoderKL")):
            cause = f"this is a {settings['_class_name']}, not a VAE"
            raise InputError([Problem(where, cause, "give an SD1.x VAE")])
        if scale != _VAE_SCALE or settings.get("latent_channels", families.LATENT) != families.LATENT:
            cause = f"this VAE is of another model family: its latents are scaled by {scale}, SD1.x's by {_VAE_SCALE}"
            raise InputError([Problem(where, cause, "give an SD1.x VAE")])
        return config.of_folder({"vae": settings}).vae
    if is_torch_file(path):
        return VAEGroups()
    header = read_header(path)
    _refuse(families.vae_problems(_shapes(header), where))
    return file_config(header.metadata, header.tensors, where).vae


def _folder_config(path: Path, where: str, needs_vae: bool) -> BaseConfig:
    found: list[Problem] = []
    family = _pipeline(path, found)
    if family is None and not (path / "unet").is_dir():
        remedy = "give a file, or a folder with unet, vae and text_encoder in it"
        raise InputError([Problem(where, "this folder is no diffusers model: it has no unet folder", remedy)])
    if family:
        raise InputError([Problem(where, f"this is {family}", families.NEEDED)])
    configs = {
        model: _model_config(path / name, found, f"{_AGAIN}, {families.OR_VAE}" if model == "vae" else _AGAIN)
        for model, name in MODELS.items()
        if needs_vae or model != "vae"
    }
    scheduler = path / "scheduler" / "scheduler_config.json"
    configs["scheduler"] = _json(scheduler, found) if scheduler.is_file() else {}
    if not found and (family := _folder_family(configs)):
        found.append(Problem(where, f"this is {family}", families.NEEDED))
    _refuse(found)
    try:
        return config.of_folder(configs)
    except (ValueError, TypeError) as error:
        cause = f"a size in its {CONFIG_FILE} files is not understood ({error})"
        raise InputError([Problem(where, cause, "download it again")]) from None


def _pipeline(path: Path, found: list[Problem]) -> str | None:
    """What the folder is by its own word or by the models in it, if it is not Stable Diffusion's plain pipeline."""
    if any((path / name).is_file() for name in ("adapter_config.json", "pytorch_lora_weights.safetensors")):
        return "a LoRA, not a base"
    if (path / "text_encoder_2").is_dir():
        return "an SDXL model"
    index = next((path / name for name in ("model_index.json", CONFIG_FILE) if (path / name).is_file()), None)
    kind = str(_json(index, found).get("_class_name", "")) if index else ""
    return next((family for name, family in _PIPELINES.items() if name in kind), None)


def _folder_family(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    unet, scheduler = configs["unet"], configs["scheduler"]
    if unet.get("addition_embed_type") is not None:
        return "an SDXL model"
    if isinstance(unet.get("attention_head_dim"), list) or configs["text"].get("hidden_act") == "gelu":
        return "an SD2.x model"
    if scheduler.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        return f"a model that predicts neither noise nor v, but {scheduler['prediction_type']!r}"
    return families.by_sizes(unet.get("in_channels"), unet.get("cross_attention_dim"))


def _model_config(folder: Path, found: list[Problem], again: str = _AGAIN) -> dict[str, Any]:
    """A model's config.json; what keeps the model from being read goes to `found`."""
    weights, settings = weights_file(folder), folder / CONFIG_FILE
    if weights is None:
        shards = any(folder.glob("*.index.json"))
        remedy = "save it in one file (max_shard_size)" if shards else again
        cause = "its weights are split over several files" if shards else f"no {_STEMS[0]}.safetensors in this folder"
        found.append(Problem(str(folder), cause if folder.is_dir() else "this folder is missing", remedy))
        return {}
    if not settings.is_file():
        found.append(Problem(str(settings), "this file is missing", "download the folder again"))
        return {}
    try:
        if not is_torch_file(weights):
            read_header(weights)
    except InputError as error:
        found += error.problems
    return _json(settings, found)


def _json(path: Path, found: list[Problem]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
        if isinstance(value, dict):
            return value
    except ValueError:
        pass
    found.append(Problem(str(path), "this is not a JSON object", "download it again"))
    return {}


def _shapes(header: Header) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in header.tensors.items()}


def _refuse(found: list[Problem]) -> None:
    if found:
        raise InputError(found)
