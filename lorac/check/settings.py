"""Rules about rank, alpha and learning rate."""

from __future__ import annotations

from lorac.check.material import Material
from lorac.check.rule import Found
from lorac.recipe.optimisers import has_relative_step

STRONG = 5e-4
"""Learning rate x alpha / dim (√dim of rsLoRA) above which the article's runs diverged or got unstable (finding 7)."""
WEAK = 1.5e-3
"""Learning rate x alpha / dim x steps below which a run stays under-trained. The article's runs of 2808 steps with
alpha 1 and dim 128: at 5e-5 (0.0011) the likeness was incomplete, at 1e-4 (0.0022) it was a success."""


def too_strong(material: Material) -> Found:
    """L007 too-strong: the learning rate went up, and alpha did not go down

    Why: Each step changes the weights by about learning rate x alpha / dim. At 1e-3 with alpha 128 of 128 the
    article's run diverged (finding 7); with alpha 1 the same rate trained. Optimisers that make the rate themselves
    are left out.

    Before:
        [network]
        alpha = 128
        [train]
        learning_rate = 1e-3

    After:
        [network]
        alpha = 1
        [train]
        learning_rate = 1e-3

    Remedy: Lower network.alpha or train.learning_rate.
    """
    train, network = material.recipe.train, material.recipe.network
    if train.optimizer == "prodigy" or has_relative_step(train.optimizer, train.optimizer_args):
        return
    rate = (train.unet_lr or 0.0) * material.strength
    if rate > STRONG:
        shown = "√dim" if network.rslora else "dim"
        text = f"learning rate x alpha / {shown} is {rate:g}, above {STRONG:g}: such runs diverge; lower alpha"
        yield material.recipe.where("network.alpha"), text


def rank_one(material: Material) -> Found:
    """L016 rank-one: the network has rank 1

    Why: A single direction in each layer holds the character, the outfit and the background at once. The article's
    run with dim 1 had fewer severed heads and unstable results: landscapes, noise (finding 8).

    Before:
        [network]
        dim = 1

    After:
        [network]
        dim = 16
        alpha = 1

    Remedy: Take a dim of 4 to 128; for a weaker LoRA lower alpha instead.
    """
    network = material.recipe.network
    if max(network.block_dims or (network.dim,)) == 1:
        text = "dim 1 gives unstable results, noise and landscapes among them; take at least 4 and lower alpha instead"
        yield material.recipe.where("network.dim"), text


def nobody_looks(material: Material) -> Found:
    """L038 evaluation-without-tagger: an evaluation is wanted, and no tagger can look at the pictures

    Why: The figures are what a tagger sees in drawn pictures. The embedded one knows the drawings of builtin:mini only;
    for another base the recipe must name one, or there will be no evaluation.json.

    Before:
        [evaluate]
        count = 16

    After:
        [evaluate]
        count = 16
        tagger = "wd-v1-4-convnext-tagger-v2"

    Remedy: Set evaluate.tagger to a folder with a WD14 tagger's model.onnx and selected_tags.csv, or count to 0.
    """
    recipe = material.recipe
    if recipe.evaluate.count and recipe.sample.prompts and recipe.judge is None:
        text = "no tagger knows what this base draws, so there is no evaluation; set evaluate.tagger"
        yield recipe.where("evaluate.count"), text


def too_weak(material: Material) -> Found:
    """L035 too-weak: learning rate, alpha and steps are too small together

    Why: Weights move by about learning rate x alpha / dim in each step. The article's run with 5e-5, alpha 1, dim 128
    and 2808 steps stayed under-trained: 0.0011 in all, where 0.0022 was a success.

    Before:
        [network]
        dim = 128
        alpha = 1
        [train]
        learning_rate = 5e-5

    After:
        [train]
        learning_rate = 1e-4

    Remedy: Raise train.learning_rate, network.alpha or the number of steps.
    """
    train, network = material.recipe.train, material.recipe.network
    if train.optimizer not in ("adamw", "adamw8bit") or not train.unet_lr or "unet" not in network.targets:
        return
    moved = train.unet_lr * material.strength * material.run.length.steps
    if moved < WEAK:
        shown = "√dim" if network.rslora else "dim"
        text = f"learning rate x alpha / {shown} x {material.run.length.steps} steps is {moved:.2g}, below {WEAK:g}"
        yield material.recipe.where("train.learning_rate"), f"{text}: such runs stay under-trained; raise one of them"
