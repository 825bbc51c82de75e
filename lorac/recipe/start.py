"""A LoRA to go on from (`network.weights`): its ranks and alphas are the recipe's, where the recipe gives none.

kohya trains at the recipe's rank and alpha and writes the file's into the result. Here a recipe that gives others is
refused before anything runs. Only the header and the alphas are read, and torch is not needed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from lorac.errors import InputError, Problem
from lorac.recipe.places import Tree
from lorac.recipe.schema import Document
from lorac.recipe.sections.network import Network
from lorac.sd.lora_names import ALPHA, PARAMETERS
from lorac.sd.safetensors import Header, TensorInfo, read_header

ROUNDED = 2.0**-8
"""How far an alpha may be off: bfloat16, the coarsest format that LoRAs are written in, keeps eight bits."""


def with_start(tree: Tree, document: Document, problems: list[Problem]) -> Document:
    """`document` with the file's `dim`, `alpha`, `conv_dim` and `conv_alpha`; what disagrees goes to `problems`.

    Left to training, which compares module by module: a file that is none of ours, and ranks that differ by block.
    """
    network, path = document.network, Path(document.network.weights or "")
    if network.weights is None or not path.is_file():
        return document
    try:
        found = _sizes(path, network)
    except (InputError, OSError):
        return document  # the node that reads the file says what is wrong with it
    for key, value in found.items():
        at = ("network", key)
        own = getattr(network, key)
        if at not in tree.places:
            network = msgspec.structs.replace(network, **{key: value})
        elif own is None or abs(own - value) > ROUNDED * value:
            cause = f"{key} in [network] is {own:g}, and that of the LoRA to go on from is {value:g}"
            problems.append(Problem(str(tree.place(at)), cause, f"take {key} out, or set it to {value:g}"))
    return msgspec.structs.replace(document, network=network)


def _sizes(path: Path, network: Network) -> dict[str, int | float]:
    """The settings of [network] that the file's modules agree on; none for a list by block that the recipe gives."""
    header = read_header(path)
    sizes: dict[str, int | float] = {}
    with path.open("rb") as file:
        for spatial, dim, alpha in ((False, "dim", "alpha"), (True, "conv_dim", "conv_alpha")):
            if network.block_dims or (spatial and network.conv_block_dims):
                continue
            ranks, alphas = set(), set()
            for rank, place in _modules(header, spatial):
                ranks.add(rank)
                if place is not None:
                    file.seek(place.start)
                    alphas.add(_number(file.read(place.end - place.start), place.dtype))
            if len(ranks) == 1:
                sizes[dim] = rank = ranks.pop()
                if len(alphas) == 1:
                    # The file's alpha is what every loader divides by the rank: alpha * √rank for rsLoRA.
                    sizes[alpha] = alphas.pop() / (math.sqrt(rank) if network.rslora else 1.0)
    return sizes


def _modules(header: Header, spatial: bool) -> Iterator[tuple[int, TensorInfo | None]]:
    """Rank and place of alpha of the file's modules: of 3x3 convolutions, or of all others."""
    for name, down in header.tensors.items():
        if name.endswith(PARAMETERS[0]) and down.shape and (down.shape[2:] not in ((), (1, 1))) == spatial:
            yield down.shape[0], header.tensors.get(name.removesuffix(PARAMETERS[0]) + ALPHA)


def _number(data: bytes, dtype: str) -> float:
    if dtype == "BF16":
        data, dtype = b"\0\0" + data, "F32"
    formats = {"F16": "<e", "F32": "<f", "F64": "<d"}
    return float(struct.unpack(formats[dtype], data)[0]) if dtype in formats else math.nan
