"""The LoRA that training goes on from, `network.weights`, by content. Its file is read into the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorac.digest import Digest
from lorac.engine.protocol import FileReader
from lorac.errors import InputError, Problem
from lorac.graph.nodes import Shape
from lorac.listing import shown_path
from lorac.recipe.start import ROUNDED

if TYPE_CHECKING:
    from torch import Tensor

    from lorac.sd.lora import LoRANetwork, NetworkSettings
    from lorac.sd.lora_settings import Adapter

NAME = "start"
VERSION = 1
SHAPE = Shape.ONE
OUTPUTS = ("file",)
INGESTS = True

WHERE = "network.weights"


def scan(
    params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
    from lorac.sd.safetensors import read_header

    path = Path(hints["path"])
    try:
        read_header(path)
        status = path.stat()
    except OSError as error:
        cause = f"cannot be read: {error.strerror or error}"
        raise InputError([Problem(shown_path(path), cause, "give a LoRA's .safetensors file")]) from error
    return [], {"file": read([(path, status)])}, {}


def load_start(lora: LoRANetwork, blob: Path | bytes) -> None:
    """Let training begin at the factors of a LoRA's file.

    Ranks and alphas are those of the file (kohya trains at the recipe's and writes the file's), so a recipe that gives
    others is refused, as is one that trains other modules: InputError.
    """
    from lorac.sd.lora_settings import adapters_of
    from lorac.sd.safetensors import tensors_of

    tensors = tensors_of(blob)
    given = {adapter.target.name: adapter for adapter in adapters_of(tensors, WHERE)}
    needed = {adapter.target.name: adapter for adapter in lora.adapters()}
    if problems := [Problem(WHERE, cause, remedy) for cause, remedy in _differences(given, needed, lora.settings)]:
        raise InputError(problems)
    lora.load_state(_rescaled(tensors, given, needed))


def _differences(
    given: Mapping[str, Adapter], needed: Mapping[str, Adapter], settings: NetworkSettings
) -> Iterator[tuple[str, str]]:
    """(cause, remedy) of what keeps the recipe's network from going on from the file's; of each kind the first."""
    if given.keys() != needed.keys():
        name = min(given.keys() ^ needed.keys())
        owner = "the LoRA" if name in given else "the recipe's network"
        cause = f"the LoRA has {len(given)} modules and the recipe's network {len(needed)}: {name} is only in {owner}"
        yield cause, "choose targets, conv_dim and the lists for blocks in [network] as they were for the LoRA"
    pairs = [(given[name], needed[name]) for name in needed if name in given]
    for file, own in pairs:
        if file.rank != own.rank:
            cause = f"the LoRA has rank {file.rank} and the recipe's network {own.rank} in {own.target.name}"
            yield cause, f"set network.{_key(own, settings, 'dim')} to {file.rank}"
            return
    for file, own in pairs:
        if abs(file.alpha - own.alpha) > ROUNDED * own.alpha:
            root = file.rank**0.5 if settings.rslora else 1.0
            alphas = f"alpha {file.alpha / root:g} and the recipe's network {own.alpha / root:g}"
            yield (
                f"the LoRA has {alphas} in {own.target.name}",
                f"set network.{_key(own, settings, 'alpha')} to {file.alpha / root:g}",
            )
            break
    for file, own in pairs:
        if file.dora != own.dora:
            yield _magnitudes(file, own)
            return


def _key(adapter: Adapter, settings: NetworkSettings, word: str) -> str:
    """The key of [network] that a module's rank (`dim`) or `alpha` comes from."""
    conv = "conv_" if adapter.target.spatial else ""
    by_block = getattr(settings, f"{conv}block_{word}s") is not None and adapter.target.part == "unet"
    return f"{conv}block_{word}s[{adapter.target.block}]" if by_block else f"{conv}{word}"


def _magnitudes(file: Adapter, own: Adapter) -> tuple[str, str]:
    if own.dora is None:
        return "the LoRA has DoRA's magnitudes and the recipe's network has none", "set network.dora to true"
    if file.dora is None:
        return "the recipe's network has DoRA's magnitudes and the LoRA has none", "set network.dora to false"
    return (
        "the LoRA has a magnitude for each output (LyCORIS), and lorac trains one for each input",
        "start without network.weights, or from a LoRA whose dora_scale has the shape (1, in)",
    )


def _rescaled(
    tensors: Mapping[str, Tensor], given: Mapping[str, Adapter], needed: Mapping[str, Adapter]
) -> dict[str, Tensor]:
    """The file's tensors with the network's own alphas. What an alpha lost when it was rounded goes into `up`."""
    import torch

    from lorac.sd.lora_names import ALPHA, PARAMETERS

    changed = {name: tensor.float() for name, tensor in tensors.items()}
    for name, own in needed.items():
        changed[f"{name}{PARAMETERS[1]}"] *= given[name].alpha / own.alpha
        changed[f"{name}{ALPHA}"] = torch.tensor(own.alpha)
    return changed
