"""The kinds draw and sidecar, by themselves, on a base with random weights."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lorac.engine.protocol import Item, Made
from lorac.evaluate.figures import Figures, encode
from lorac.kinds import draw, sidecar, weights
from lorac.kinds.base import read_again
from lorac.rng import seed64
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.safetensors import serialise
from lorac.sd.sampler import sample
from lorac.sd.tokenizer import Tokenizer, chunk
from lorac.sd.vae import SCALE
from lorac.sheet import joined, opened, parted
from tests.loras import fill
from tests.one_item import of_blobs

SETTINGS = {
    "sample": {"steps": 2, "cfg_scale": 3.0, "seed": 7, "sampler": "ddim"},
    "width": 64,
    "height": 64,
    "clip_skip": 2,
    "prediction": {"v_parameterization": False, "zero_terminal_snr": False},
}
TEXTS = [{"prompt": "1girl, riho", "negative": "hat"}, {"prompt": "ocean", "negative": ""}]


@pytest.fixture(scope="module")
def blobs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Any]:
    """The base's models and a LoRA that changes pictures, by the names of their ports."""
    shared, hints = {"base": read_again(tiny_base)}, {"base": str(tiny_base)}
    (made,) = weights.run(of_blobs({}, hints=hints, shared=shared, scratch=tmp_path_factory.mktemp("weights")))
    assert isinstance(made, Made)
    unet, text = weights.unet(made.outputs["unet"]), weights.text_encoder(made.outputs["text"])
    lora = LoRANetwork(unet, text, NetworkSettings(4, 4.0))
    fill(lora, 3, 0.3)
    state = {name: tensor.clone() for name, tensor in lora.state().items()}
    return {port.encode(): blob for port, blob in made.outputs.items()} | {b"lora": serialise(state, {})}


def drawn(
    blobs: dict[bytes, Any], texts: Iterable[dict[str, str]], strengths: Iterable[float], count: int, **more: Any
) -> list[tuple[list[bytes], bytes]]:
    """For each text and strength the pixels of the sheet's pictures, and the first picture's; no strength: no LoRA."""
    strengths = list(strengths)
    params: list[dict[str, Any]] = list(texts)
    if strengths:
        params = [{**text, "strength": strength} for text in texts for strength in strengths]
    items = [Item(index, str(index), item, {}) for index, item in enumerate(params)]
    ports = ["unet", "text", "vae", *(["lora"] if strengths else [])]
    shared = {port: port.encode() for port in ports}
    work = of_blobs(blobs, params={**SETTINGS, "count": count}, items=items, shared=shared, **more)
    made = {found.index: found.outputs for found in draw.run(work) if isinstance(found, Made)}
    assert made.keys() == {item.index for item in items}
    results = []
    for index in range(len(items)):
        sheet, first = bytes(made[index]["sheet"]), bytes(made[index]["first"])
        pixels = [picture.tobytes() for picture in parted(sheet, count)]
        results.append((pixels, Image.open(io.BytesIO(first)).tobytes()))
    return results


def by_hand(blobs: dict[bytes, Any], text: dict[str, str], strength: float, number: int) -> torch.Tensor:
    """One picture alone, (H, W, 3), 0 to 255, with the factors added to the weights in float64."""
    from lorac.sd.safetensors import tensors_of

    unet, encoder = weights.unet(blobs[b"unet"]), weights.text_encoder(blobs[b"text"])
    vae = weights.vae(blobs[b"vae"])
    if strength:
        tensors = tensors_of(blobs[b"lora"])
        names = {f"lora_unet_{path.replace('.', '_')}": layer for path, layer in unet.named_modules()}
        names |= {f"lora_te_text_model_{path.replace('.', '_')}": layer for path, layer in encoder.named_modules()}
        names |= {f"lora_te_{path.replace('.', '_')}": layer for path, layer in encoder.named_modules()}
        changed = 0
        for name in tensors:
            if name.endswith(".alpha"):
                module = name.removesuffix(".alpha")
                down, up = tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"]
                scale = strength * float(tensors[name]) / down.shape[0]
                weight: Any = names[module].weight
                delta = scale * (up.flatten(1).double() @ down.flatten(1).double())
                weight.data += delta.view_as(weight).float()
                changed += 1
        assert changed == 264
    ids = [Tokenizer().encode(text[key]) for key in ("prompt", "negative")]
    noise = torch.Generator().manual_seed(seed64(7, "sample noise", number) >> 1)
    with torch.no_grad():
        states, negative = (encoder(torch.tensor([chunk(row, 75)]), 2) for row in ids)
        start = torch.randn((1, 4, 8, 8), generator=noise)
        latents = sample(unet, states, negative, start, 2, 3.0, "ddim")
        pixels = vae.decode(latents / SCALE)[0].clamp(-1, 1)
    return ((pixels + 1) * 127.5).permute(1, 2, 0)


def test_a_sheet_is_what_the_sampler_draws_picture_by_picture(blobs: dict[bytes, Any]) -> None:
    """Each cell starts from the same noises; its prompt, and the LoRA at its strength, decide the rest."""
    strengths = [0.5, -1.0]
    off, on = drawn(blobs, TEXTS, [], 3), drawn(blobs, TEXTS, strengths, 3)
    cells = [(TEXTS[i], 0.0, off[i]) for i in range(2)]
    cells += [(TEXTS[i // 2], strengths[i % 2], on[i]) for i in range(4)]
    assert len({pictures[0][0] for _, _, pictures in cells}) == 6
    for text, strength, (pictures, first) in cells:
        assert first == pictures[0] and len(set(pictures)) == 3
        expected = by_hand(blobs, text, strength, number=2).flatten()
        seen = torch.frombuffer(bytearray(pictures[2]), dtype=torch.uint8)
        assert (seen - expected).abs().max() < 1.0, (text, strength)


def test_a_picture_does_not_depend_on_what_else_is_drawn(blobs: dict[bytes, Any]) -> None:
    """So a prompt or a strength that is added later gives what it would have given at first."""
    together = drawn(blobs, TEXTS, [0.5, 1.0], 9)
    assert drawn(blobs, TEXTS[1:], [1.0], 9) == together[3:]
    assert drawn(blobs, TEXTS[:1], [1.0, 0.5], 9) == [together[1], together[0]]
    few = drawn(blobs, TEXTS, [0.5, 1.0], 1)
    assert [pictures for pictures, _ in few] == [pictures[:1] for pictures, _ in together]


def test_progress_counts_pictures(blobs: dict[bytes, Any]) -> None:
    told: list[tuple[float, float, str]] = []
    drawn(blobs, TEXTS, [1.0], 2, progress=lambda *heard: told.append(heard))
    assert told == [(done, 4, "pictures") for done in range(1, 5)]


def test_drawing_stops_soon_when_the_build_is_stopped(blobs: dict[bytes, Any]) -> None:
    from lorac.errors import Interrupted

    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Interrupted):
        drawn(blobs, TEXTS, [1.0], 2, cancelled=cancelled)


# -- the sidecar -----------------------------------------------------------------------------------------------------

FACTS = json.dumps({"description": "riho", "activation text": "izumi riho", "made": "lorac recipe 1"}).encode()


def beside(
    wanted: float | None, strengths: list[float], evaluated: Figures | None = None, prompts: int = 2
) -> tuple[dict[str, Any], bytes]:
    """(NAME.json, NAME.png) where pictures are the words "prompt 0 at 0.5"; `off` is the first without the LoRA."""
    firsts = [f"prompt {prompt} at {strength}".encode() for prompt in range(prompts) for strength in strengths]
    blobs = {name: name for name in [b"off", *firsts]} | {b"facts": FACTS}
    shared = {"facts": b"facts"} | ({"off": b"off"} if prompts else {})
    if evaluated is not None:
        blobs[b"figures"], shared["figures"] = encode(evaluated), b"figures"
    params = {"output": {"preferred_weight": wanted, "negative": "blurry", "notes": ""}, "strengths": strengths}
    columns = {"first": firsts} if firsts else {}
    (made,) = sidecar.run(of_blobs(blobs, params=params, shared=shared, columns=columns))
    assert isinstance(made, Made)
    return json.loads(made.outputs["json"]), bytes(made.outputs["preview"])  # type: ignore[arg-type]


def figures(preferred: float | None) -> Figures:
    return Figures(1, 0.35, (), {}, (0.0,), (), (), (), None, (), preferred)


@pytest.mark.parametrize(
    ("wanted", "evaluated", "strengths", "weight", "shown"),
    [
        (None, None, [0.5, 0.7, 1.0], 0.0, "1.0"),
        (None, None, [1.0, 0.5], 0.0, "1.0"),
        (None, None, [-1.0], 0.0, "off"),
        (0.7, None, [0.5, 0.7, 1.0], 0.7, "0.7"),
        (0.75, None, [0.5, 1.0], 0.75, "1.0"),
        (0.6, None, [0.5, 1.0], 0.6, "0.5"),
        (0.7, None, [], 0.7, "off"),
        (0.1, None, [0.5], 0.1, "off"),
        (None, 0.5, [0.5, 1.0], 0.5, "0.5"),
        (1.0, 0.5, [0.5, 1.0], 1.0, "1.0"),
        (None, "none", [0.5, 1.0], 0.0, "1.0"),
    ],
)
def test_the_preview_is_drawn_at_the_strength_that_web_uis_insert(
    wanted: float | None, evaluated: Any, strengths: list[float], weight: float, shown: str
) -> None:
    """The recipe's wish, or else the evaluation's; nothing leaves the strength to the web UI."""
    found = figures(None if evaluated == "none" else evaluated) if evaluated is not None else None
    fields, preview = beside(wanted, strengths, found)
    assert fields["preferred weight"] == weight
    assert preview == (b"off" if shown == "off" else f"prompt 0 at {shown}".encode())
    assert (fields["description"], fields["activation text"], fields["negative text"], fields["notes"]) == (
        "riho", "izumi riho", "blurry", "lorac recipe 1",
    )  # fmt: skip


def test_without_prompts_there_is_no_preview() -> None:
    assert beside(0.7, [], prompts=0)[1] == b""


# -- the report's grid -----------------------------------------------------------------------------------------------


def test_a_row_of_the_report_shows_the_pictures_by_strength() -> None:
    from lorac.kinds.report import _rows

    def sheet(number: int) -> bytes:
        return joined([Image.new("RGB", (16, 16), (40 * number, 0, 200 * second)) for second in (0, 1)])

    def colour(webp: bytes) -> tuple[int, int]:
        red, _, blue = opened(webp).convert("RGB").crop((8, 8, 9, 9)).tobytes()
        return round(red / 40), round(blue / 200)

    blobs = {f"{number}".encode(): sheet(number) for number in range(6)}
    prompts = [{"prompt": name, "negative": ""} for name in ("a girl", "a boy")]
    params = {"strengths": [0.0, 0.5, 1.0], "prompts": prompts, "count": 2}
    columns = {"off": [b"0", b"1"], "sheet": [b"2", b"3", b"4", b"5"]}
    rows = list(_rows(of_blobs(blobs, params=params, columns=columns)))
    assert [row.prompt for row in rows] == ["a girl", "a boy"]
    for row, numbers in zip(rows, ((0, 2, 3), (1, 4, 5)), strict=True):
        assert [colour(picture) for picture in row.firsts] == [(n, 0) for n in numbers]
        assert [[colour(picture) for picture in shown] for shown in row.sheets] == [[(n, 0), (n, 1)] for n in numbers]
    alone = {"strengths": [0.0], "prompts": prompts[:1], "count": 2}
    (only,) = _rows(of_blobs(blobs, params=alone, columns={"off": [b"5"]}))
    assert [colour(picture) for picture in only.firsts] == [(5, 0)]
