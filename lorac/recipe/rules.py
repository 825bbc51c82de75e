"""What a schema cannot say: settings that contradict each other, and names that are no file names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from lorac.listing import EXTENSIONS
from lorac.recipe.arithmetic import POLYNOMIAL_END
from lorac.recipe.fields import BLOCKS, BUILTIN_BASE, DOWN_BLOCKS
from lorac.recipe.places import Finding
from lorac.recipe.positions import KeyPath
from lorac.recipe.rules_train import TRAIN_RULES, Rule
from lorac.recipe.schema import Document
from lorac.recipe.sections.network import Network
from lorac.recipe.sections.train import Train

# `:`, `<`, `>` and `,` would end the name inside a prompt's <lora:name:weight>; the rest are no file names on Windows.
_FORBIDDEN = re.compile(r'[:<>,/\\"|?*\x00-\x1f]')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def check(document: Document, wrong: Collection[KeyPath]) -> list[Finding]:
    """Everything that is wrong between keys which are each right by themselves.

    `wrong` are the keys that are not; the document has their defaults, and a rule must not blame those.
    """
    findings: list[Finding] = []
    for rule, keys in _RULES.items():
        if not any(bad[: len(key)] == key or bad == key[: len(bad)] for key in keys for bad in wrong if bad):
            findings += rule(document)
    return findings


def name_fault(name: str) -> str | None:
    """Why `name` cannot name a LoRA and its files, or None."""
    if found := _FORBIDDEN.search(name):
        return f"contains {found[0]!r}"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a space or a point"
    if name.startswith("."):
        return "begins with a point"
    if _RESERVED.fullmatch(name):
        return "is reserved by Windows"
    return "is longer than 120 bytes" if len(name.encode()) > 120 else None


def _extends(document: Document) -> Iterator[Finding]:
    if document.extends is not None:
        yield Finding(("extends",), "extends is given outside a recipe file", "write it into the recipe")


def _extension(document: Document) -> Iterator[Finding]:
    extension = document.caption.extension
    if extension.lower() in EXTENSIONS:
        yield Finding(
            ("caption", "extension"), f'"{extension}" is an extension of pictures', 'give another, such as ".txt"'
        )


def _separator(document: Document) -> Iterator[Finding]:
    mark, at = document.caption.keep_tokens_separator, ("caption", "keep_tokens_separator")
    if mark and not mark.strip():
        yield Finding(at, "keep_tokens_separator is only space", "give a mark such as |||")
    elif found := next((sign for sign in ",\n{}" if sign in mark), None):
        what = {"\n": "a line break"}.get(found, f'"{found}"')
        yield Finding(at, f"keep_tokens_separator has {what} in it", "give a mark such as |||")


def _timesteps(document: Document) -> Iterator[Finding]:
    low, high = document.loss.min_timestep, document.loss.max_timestep
    if low >= high:
        cause = f"min_timestep {low} leaves no timestep below max_timestep {high}"
        yield Finding(("loss", "min_timestep"), cause, f"give less than {high}")


def _sources(document: Document) -> Iterator[Finding]:
    if not document.source:
        yield Finding((), "there is no [[source]]", "add one with the path of your pictures")


def _name(document: Document) -> Iterator[Finding]:
    name = document.output.name
    if name is not None and (fault := name_fault(name)):
        yield Finding(("output", "name"), f'name in [output] {fault}: "{name}"', "choose another name")


def _length(document: Document) -> Iterator[Finding]:
    train = document.train
    if train.epochs is not None and train.steps is not None:
        yield Finding(("train", "steps"), "[train] has both epochs and steps", "take one out")
    if train.epochs is None and train.steps is None:
        yield Finding(("train",), "[train] has neither epochs nor steps", "add epochs = 10, or steps = 3000")


def _polynomial(document: Document) -> Iterator[Finding]:
    train = document.train
    if train.lr_scheduler == "polynomial" and train.learning_rate <= POLYNOMIAL_END:
        cause = f'the scheduler "polynomial" ends at {POLYNOMIAL_END:g}, and learning_rate is {train.learning_rate:g}'
        yield Finding(("train", "learning_rate"), cause, "give a larger learning_rate, or another lr_scheduler")


def _grid(train: Train) -> int:
    """The pixels that sides of pictures are multiples of, because the U-Net halves its latents three times, or once."""
    return 16 if train.base == BUILTIN_BASE else 64


def _sizes(document: Document) -> Iterator[Finding]:
    grid = _grid(document.train)
    keys = [("train", key) for key in ("resolution", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")]
    for section, key in [*keys, ("sample", "width"), ("sample", "height")]:
        pixels = getattr(getattr(document, section), key)
        if pixels is not None and pixels % grid:
            cause = f"{key} in [{section}] is the number {pixels}"
            yield Finding((section, key), cause, f"give a multiple of {grid}, which the base needs")


def _bucket_limits(document: Document) -> Iterator[Finding]:
    train = document.train
    low, middle, high = train.min_bucket_reso, train.resolution, train.max_bucket_reso
    at = ("train", "min_bucket_reso")
    if low is not None and high is not None and low > high:
        yield Finding(at, f"min_bucket_reso {low} is larger than max_bucket_reso {high}", "exchange them")
    elif low is not None and middle is not None and low > middle:
        yield Finding(at, f"min_bucket_reso {low} is larger than the resolution {middle}", f"give at most {middle}")
    elif high is not None and middle is not None and high < middle:
        cause = f"max_bucket_reso {high} is smaller than the resolution {middle}"
        yield Finding(("train", "max_bucket_reso"), cause, f"give at least {middle}")


def _strengths(document: Document) -> Iterator[Finding]:
    strengths = document.sample.strengths
    for i, strength in enumerate(strengths):
        if strength in strengths[:i]:
            yield Finding(("sample", "strengths", i), f"strengths in [sample] has {strength:g} twice", "take one out")


def _held_out(document: Document) -> Iterator[Finding]:
    validation = document.validation
    for name in ("trigger", "alpha"):
        if validation.path is None and getattr(validation, name):
            cause = f"{name} in [validation] is for the pictures of path, which is not given"
            yield Finding(("validation", name), cause, f"add path, or take {name} out")


_LISTS = {
    **dict.fromkeys(("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"), BLOCKS),
    **dict.fromkeys(("down_lr_weight", "up_lr_weight"), DOWN_BLOCKS),
}
_UNET_ONLY = ("conv_dim", "mid_lr_weight", *_LISTS)
_TRANSFORMERS = frozenset({1, 2, 4, 5, 7, 8, 12, *range(16, 25)})
"""The blocks that have modules without LoCon."""


def _block_lists(document: Document) -> Iterator[Finding]:
    for name, length in _LISTS.items():
        values = getattr(document.network, name)
        if values is not None and len(values) != length:
            which = "" if length == BLOCKS else f" on the way {name.partition('_')[0]}"
            cause = f"{name} in [network] has {len(values)} number{'' if len(values) == 1 else 's'}"
            yield Finding(("network", name), cause, f"give {length}, one for each block of the U-Net{which}")


def _without_unet(document: Document) -> Iterator[Finding]:
    network = document.network
    for name in _UNET_ONLY:
        if "unet" not in network.targets and getattr(network, name) is not None:
            cause = f"{name} in [network] is for the U-Net, which targets leaves out"
            yield Finding(("network", name), cause, f'add "unet" to targets, or take {name} out')


def _alphas_without_dims(document: Document) -> Iterator[Finding]:
    network = document.network
    for alphas, dims in (("block_alphas", "block_dims"), ("conv_block_alphas", "conv_block_dims")):
        if getattr(network, alphas) is not None and getattr(network, dims) is None:
            cause = f"{alphas} in [network] is given without {dims}"
            yield Finding(("network", alphas), cause, f"add {dims}, or take {alphas} out")
    if network.conv_alpha != 1.0 and network.conv_dim is None and network.conv_block_dims is None:
        cause = "conv_alpha in [network] is given without conv_dim"
        yield Finding(("network", "conv_alpha"), cause, "add conv_dim, or take conv_alpha out")


def _nothing_left(document: Document) -> Iterator[Finding]:
    network = document.network
    if "unet" in network.targets and not any(_trained(network, block) for block in range(1, BLOCKS)):
        key = "block_dims" if network.block_dims is not None else "down_lr_weight"
        cause = "[network] leaves out all blocks of the U-Net that could get a LoRA"
        yield Finding(("network", key), cause, 'give one of them a rank and a factor, or take "unet" out of targets')


def _trained(network: Network, block: int) -> bool:
    """Whether a block of the U-Net has modules that learn. Lists of a wrong length are another rule's."""
    locon = network.conv_dim is not None or network.conv_block_dims is not None
    factors = [
        *(network.down_lr_weight or (1.0,) * DOWN_BLOCKS),
        1.0 if network.mid_lr_weight is None else network.mid_lr_weight,
        *(network.up_lr_weight or (1.0,) * DOWN_BLOCKS),
    ]
    dims = network.block_dims or (network.dim,) * BLOCKS
    conv_dims = network.conv_block_dims or (network.conv_dim or 0,) * BLOCKS
    if min(len(factors), len(dims), len(conv_dims)) <= block or not factors[block]:
        return len(factors) != BLOCKS or len(dims) != BLOCKS or len(conv_dims) != BLOCKS
    return bool(conv_dims[block] or (dims[block] and (locon or block in _TRANSFORMERS)))


# Each rule with the keys whose default could make it speak; elsewhere a key that is wrong, and so absent, is harmless.
_RULES: dict[Rule, list[KeyPath]] = {
    _extends: [],
    _extension: [],
    _separator: [],
    _timesteps: [("loss", "min_timestep"), ("loss", "max_timestep")],
    _sources: [("source",)],
    _name: [],
    _length: [("train", "epochs"), ("train", "steps")],
    _polynomial: [("train", "lr_scheduler"), ("train", "learning_rate")],
    _sizes: [("train", "base")],
    _bucket_limits: [],
    _strengths: [],
    _held_out: [("validation", "path")],
    _block_lists: [],
    _without_unet: [("network", "targets")],
    _alphas_without_dims: [("network", name) for name in ("block_dims", "conv_block_dims", "conv_dim")],
    _nothing_left: [("network",)],
    **TRAIN_RULES,
}
