"""What tests and benchmarks build from: a base with few random weights, pictures, a recipe that trains in a second."""

from __future__ import annotations

from pathlib import Path

from lorac.rng import Stream

RECIPE = """
[[source]]
path = "pictures"
repeats = 2
trigger = ["izumi riho"]

[[regularisation]]
path = "class"

[caption]
exclude = ["1girl", "solo"]
shuffle_caption = true
keep_tokens = 1

[network]
dim = 2
alpha = 2

[train]
base = "BASE"
epochs = 2
learning_rate = 1e-3
lr_scheduler = "cosine_with_restarts"
lr_warmup_steps = 0.1
save_every_n_epochs = 1

[sample]
prompts = ["1girl, izumi riho"]
strengths = [1.0]
steps = 2
cfg_scale = 2.0
sampler = "euler_a"
"""


def save_base(path: Path) -> None:
    """A single-file checkpoint of the real architecture with 3 million random weights, for 64 px pictures."""
    import torch

    from lorac.sd.checkpoint import save_ldm
    from lorac.sd.clip import TextConfig, TextEncoder
    from lorac.sd.config import BaseConfig, TextHeads, UNetHeads, VAEGroups
    from lorac.sd.unet import UNet, UNetConfig
    from lorac.sd.vae import VAE, VAEConfig

    unet = UNet(UNetConfig(width=16, context=16, heads=2, groups=4))
    vae = VAE(VAEConfig(width=8, groups=4))
    text = TextEncoder(TextConfig(width=16, layers=12, heads=2, inner=32))
    generator = torch.Generator().manual_seed(5)
    for model in (unet, vae, text):
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                torch.nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                torch.nn.init.normal_(parameter, std=(parameter[0].numel()) ** -0.5, generator=generator)
    config = BaseConfig(UNetHeads(2, 4), VAEGroups(4), TextHeads(2), resolution=64, clip_skip=2)
    save_ldm(path, unet, vae, text, config)


def draw_pictures(folder: Path, count: int, seed: int = 1, size: tuple[int, int] = (72, 64)) -> None:
    """Pictures of coloured blocks with captions; numbers and colours follow from the seed."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        stream = Stream(seed, "test picture", number)
        image = Image.new("RGB", size, (stream.below(256), stream.below(256), stream.below(256)))
        image.paste((stream.below(256), stream.below(256), stream.below(256)), (10, 10, 40, 50))
        image.save(folder / f"絵 {number:02}.png")
        tags = ["1girl", "solo", f"colour {stream.below(9)}", "smile", f"thing {number}"]
        (folder / f"絵 {number:02}.txt").write_text(", ".join(tags), encoding="utf-8")


def make_project(folder: Path, base: Path) -> Path:
    """Three pictures, two regularisation pictures and `recipe.toml`, which uses them; returns the folder."""
    draw_pictures(folder / "pictures", 3)
    draw_pictures(folder / "class", 2, seed=2)
    (folder / "recipe.toml").write_text(RECIPE.replace('"BASE"', f"'{base}'"), encoding="utf-8")
    return folder
