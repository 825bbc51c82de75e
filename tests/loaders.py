"""How programs load a LoRA, each replayed from its source in a few lines: names of modules, and changes of weights.

`tensors` is the LoRA's table. `base` holds an SD1.x checkpoint's weights by the names of its single file. The result
is the change of each weight, float64, under the checkpoint's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
Changes = dict[str, Tensor]

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."


def grouped(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """`module.part` → part by module, split at the first dot: A1111, InvokeAI and kohya alike."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.partition(".")
        modules.setdefault(module, {})[part] = tensor.double()
    return modules


def column_norms(weight: Tensor) -> Tensor:
    """`weight.transpose(0, 1).reshape(shape[1], -1).norm(dim=1)`, shaped (1, in, 1…), as all loaders have it."""
    norms: Tensor = weight.transpose(0, 1).reshape(weight.shape[1], -1).norm(dim=1)
    return norms.reshape(1, weight.shape[1], *[1] * (weight.dim() - 2))


# -- AUTOMATIC1111/stable-diffusion-webui v1.10.1, extensions-builtin/Lora -------------------------------------------


def a1111(tensors: Tensors, base: Tensors) -> Changes:
    """networks.py `load_network`; network.py `NetworkModule`; network_lora.py `NetworkModuleLora.calc_updown`.

    A module that is not found is passed over without a word, so here it is an error.
    """
    layers = {_a1111_layer(name): name for name in base if name.endswith(".weight")}
    changes = {}
    for module, parts in grouped(tensors).items():
        name = layers[_compvis_name(module)]
        weight = base[name].double()
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        updown = (up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)).reshape(weight.shape)
        updown = updown * (parts["alpha"].item() / down.shape[0])
        if "dora_scale" in parts:
            merged = weight + updown
            updown = merged * (parts["dora_scale"] / column_norms(merged)) - weight
        changes[name] = updown
    return changes


def _a1111_layer(name: str) -> str:
    """`assign_network_names_to_compvis_modules`: named_modules() of `model` and of `cond_stage_model.wrapped`."""
    path = name.removesuffix(".weight")
    return path.removeprefix("model.").removeprefix("cond_stage_model.").replace(".", "_")


def _compvis_name(key: str) -> str:
    """networks.py `convert_diffusers_name_to_compvis`, for SD1."""
    suffixes = {
        "conv1": "in_layers_2",
        "conv2": "out_layers_3",
        "time_emb_proj": "emb_layers_1",
        "conv_shortcut": "skip_connection",
    }
    if m := re.match(r"lora_unet_down_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", key):
        place = f"{1 + int(m[1]) * 3 + int(m[3])}_{1 if m[2] == 'attentions' else 0}"
        return f"diffusion_model_input_blocks_{place}_{suffixes.get(m[4], m[4])}"
    if m := re.match(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", key):
        place = "1" if m[1] == "attentions" else str(int(m[2]) * 2)
        return f"diffusion_model_middle_block_{place}_{suffixes.get(m[3], m[3])}"
    if m := re.match(r"lora_unet_up_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", key):
        place = f"{int(m[1]) * 3 + int(m[3])}_{1 if m[2] == 'attentions' else 0}"
        return f"diffusion_model_output_blocks_{place}_{suffixes.get(m[4], m[4])}"
    if m := re.match(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", key):
        return f"diffusion_model_input_blocks_{3 + int(m[1]) * 3}_0_op"
    if m := re.match(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", key):
        return f"diffusion_model_output_blocks_{2 + int(m[1]) * 3}_{2 if int(m[1]) > 0 else 1}_conv"
    if m := re.match(r"lora_te_text_model_encoder_layers_(\d+)_(.+)", key):
        return f"transformer_text_model_encoder_layers_{m[1]}_{m[2]}"
    return key


# -- comfyanonymous/ComfyUI, comfy/lora.py, comfy/utils.py, comfy/weight_adapter --------------------------------------


def comfyui(tensors: Tensors, base: Tensors) -> Changes:
    """Raises LookupError where it prints `lora key not loaded`."""
    changes, rest = _comfyui_patches(tensors, base)
    if rest:
        raise LookupError(sorted(rest))
    return changes


def forge(tensors: Tensors, base: Tensors) -> Changes:
    """lllyasviel/stable-diffusion-webui-forge dfdcbab6, extensions-builtin/sd_forge_lora/networks.py.

    The key maps and formulas (packages_3rdparty/comfyui_lora_collection, backend/patcher/lora.py) are ComfyUI's.
    """
    changes, rest = _comfyui_patches(tensors, base)
    if len(rest) > 12:
        raise LookupError("LoRA version mismatch")
    return changes


def _comfyui_patches(tensors: Tensors, base: Tensors) -> tuple[Changes, set[str]]:
    """lora.py `load_lora` with `model_lora_keys_unet` and `model_lora_keys_clip`; LoRAAdapter.calculate_weight."""
    changes, loaded = {}, set()
    for module, name in {**_comfyui_unet_keys(), **_comfyui_clip_keys()}.items():
        if f"{module}.lora_up.weight" not in tensors:
            continue
        parts = grouped({key: tensors[key] for key in tensors if key.startswith(f"{module}.")})[module]
        loaded |= {f"{module}.{part}" for part in ("alpha", "dora_scale", "lora_up.weight", "lora_down.weight")}
        weight = base[name].double()
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        alpha = parts["alpha"].item() / down.shape[0]
        change = alpha * torch.mm(up.flatten(start_dim=1), down.flatten(start_dim=1)).reshape(weight.shape)
        if "dora_scale" in parts:
            change = _weight_decompose(parts["dora_scale"], weight, change) - weight
        changes[name] = change
    return changes, set(tensors) - loaded


def _weight_decompose(dora_scale: Tensor, weight: Tensor, change: Tensor) -> Tensor:
    """weight_adapter/base.py `weight_decompose`. On the output axis it divides by the norms of the bare weight."""
    changed = weight + change
    if dora_scale.shape[0] == changed.shape[0]:
        rows: Tensor = weight.reshape(weight.shape[0], -1).norm(dim=1)
        norms = rows.reshape(weight.shape[0], *[1] * (weight.dim() - 1))
    else:
        norms = column_norms(changed)
    return changed * (dora_scale / (norms + torch.finfo(torch.float32).eps))


def _comfyui_clip_keys() -> dict[str, str]:
    modules = ["mlp.fc1", "mlp.fc2", *(f"self_attn.{part}_proj" for part in ("k", "q", "v", "out"))]
    return {
        f"lora_te_text_model_encoder_layers_{layer}_{module.replace('.', '_')}": (
            f"{TEXT}text_model.encoder.layers.{layer}.{module}.weight"  # ComfyUI has it under clip_l.transformer
        )
        for layer in range(32)
        for module in modules
    }


def _comfyui_unet_keys() -> dict[str, str]:
    """utils.py `unet_to_diffusers` with SD1.5's configuration, weights only."""
    depths, depths_out = [1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    resnet = {
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    block = [
        *(f"attn{i}.to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out.0")),
        "ff.net.0.proj",
        "ff.net.2",
    ]
    attention = ["proj_in", "proj_out", *(f"transformer_blocks.0.{module}" for module in block)]
    names: dict[str, str] = {}
    for x in range(4):
        n = 1 + 3 * x
        for i in range(2):
            names |= {f"down_blocks.{x}.resnets.{i}.{b}": f"input_blocks.{n}.0.{a}" for a, b in resnet.items()}
            if depths.pop(0):
                names |= {f"down_blocks.{x}.attentions.{i}.{b}": f"input_blocks.{n}.1.{b}" for b in attention}
            n += 1
        names[f"down_blocks.{x}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
    names |= {f"mid_block.attentions.0.{b}": f"middle_block.1.{b}" for b in attention}
    for i, n in enumerate([0, 2]):
        names |= {f"mid_block.resnets.{i}.{b}": f"middle_block.{n}.{a}" for a, b in resnet.items()}
    for x in range(4):
        n = 3 * x
        for i in range(3):
            c = 1
            names |= {f"up_blocks.{x}.resnets.{i}.{b}": f"output_blocks.{n}.0.{a}" for a, b in resnet.items()}
            if depths_out.pop():
                c += 1
                names |= {f"up_blocks.{x}.attentions.{i}.{b}": f"output_blocks.{n}.1.{b}" for b in attention}
            if i == 2:
                names[f"up_blocks.{x}.upsamplers.0.conv"] = f"output_blocks.{n}.{c}.conv"
            n += 1
    return {f"lora_unet_{key.replace('.', '_')}": f"{UNET}{name}.weight" for key, name in names.items()}


# -- invoke-ai/InvokeAI 8e71a8a5, backend/patches, backend/model_manager ----------------------------------------------


def invokeai(tensors: Tensors, unet: nn.Module, text: nn.Module) -> Changes:
    """layer_patcher.py `_get_submodule` on diffusers' modules; lora_layer.py, dora_layer.py. Keys: module paths.

    A module that is not found is warned of and passed over, so here it is an error.
    """
    changes = {}
    for key, parts in grouped(tensors).items():
        prefix, model = ("lora_unet_", unet) if key.startswith("lora_unet_") else ("lora_te_", text)
        path = _walk(model, key.removeprefix(prefix))
        layer: Any = model.get_submodule(path)
        weight: Tensor = layer.weight.double()
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        change = (up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)).reshape(weight.shape)
        change = change * (parts["alpha"].item() / down.shape[0])
        if "dora_scale" in parts:
            changed = weight + change
            change = changed * (parts["dora_scale"] / column_norms(changed)) - weight
        changes[prefix + path] = change
    return changes


def _walk(model: nn.Module, flattened: str) -> str:
    """The path of a module whose dots have become underscores."""
    path, (name, *rest) = [], flattened.split("_")
    module = model
    while rest:
        try:
            module = module.get_submodule(name)
            path.append(name)
            name = rest.pop(0)
        except AttributeError:
            name += "_" + rest.pop(0)
    module.get_submodule(name)
    return ".".join([*path, name])


def invokeai_token_width(tensors: Tensors) -> int | None:
    """model_util.py `lora_token_vector_length`: 768 is SD1, 1024 SD2, 1280 and 2048 SDXL; None is refused."""
    for name, tensor in tensors.items():
        module, _, part = name.partition(".")
        attention = module.startswith("lora_unet_") and module.endswith(("_attn2_to_k", "_attn2_to_v"))
        time = module.startswith("lora_unet_") and module.endswith("time_emb_proj")
        text = module.startswith("lora_te_") and "_self_attn_" in module
        if part == "lora_down.weight" and (attention or time or text):
            return int(tensor.shape[1])
    return None


# -- kohya-ss/sd-scripts 48d368fa, networks/lora.py -------------------------------------------------------------------


def kohya(tensors: Tensors, unet: nn.Module, text: nn.Module) -> Changes:
    """`create_network_from_weights`, `LoRANetwork.create_modules`, `LoRAInfModule.merge_to`. Keys: its module names.

    Raises LookupError for modules that it would not make. DoRA is not its own but LyCORIS's.
    """
    parts = grouped(tensors)
    transformers = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    layers = {
        **_kohya_layers("lora_te", text, ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")),
        **_kohya_layers("lora_unet", unet, transformers),
    }
    if unknown := parts.keys() - layers.keys():
        raise LookupError(sorted(unknown))
    return {name: _kohya_change(parts[name], layers[name]) for name in layers if name in parts}


def _kohya_layers(prefix: str, model: nn.Module, classes: tuple[str, ...]) -> dict[str, Tensor]:
    layers: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if module.__class__.__name__ in classes:
            child: Any
            for child_name, child in module.named_modules():
                if child.__class__.__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear"):
                    layers[f"{prefix}.{name}.{child_name}".replace(".", "_")] = child.weight.double()
    return layers


def _kohya_change(parts: Tensors, weight: Tensor) -> Tensor:
    up, down = parts["lora_up.weight"], parts["lora_down.weight"]
    scale = parts["alpha"].item() / down.shape[0]
    if weight.dim() == 2:
        return up @ down * scale
    if down.shape[2:4] == (1, 1):
        product = up.squeeze(3).squeeze(2) @ down.squeeze(3).squeeze(2)
        return product.unsqueeze(2).unsqueeze(3) * scale
    return F.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3) * scale


LDM_LOADERS: dict[str, Callable[[Tensors, Tensors], Changes]] = {"A1111": a1111, "Forge": forge, "ComfyUI": comfyui}
