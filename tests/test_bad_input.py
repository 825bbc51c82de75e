"""What a user can do wrong: each thing has its message, all bad files are named at once, and earlier outputs stay."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from lorac.kinds.image import Refused, decode
from lorac.rng import Stream
from tests.running import contents, lorac, refused
from tests.tiny import make_project

# -- pictures and captions that are refused --------------------------------------------------------


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (70, 66), seed: int = 3) -> Image.Image:
    stream = Stream(seed, "noise")
    return Image.frombytes("RGB", size, bytes(stream.below(256) for _ in range(3 * size[0] * size[1])))


def frames() -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]


def cut_out() -> Image.Image:
    image = noise().convert("RGBA")
    image.putpixel((5, 5), (1, 2, 3, 254))
    return image


PNG = encoded(noise(), "PNG")
BAD_PICTURES = {
    "truncated.png": (PNG[:-2000], "is truncated or damaged"),
    "text.png": (b"1girl, solo\n", "is no PNG, JPEG, WEBP or BMP picture, whatever its name says; remove it"),
    "empty.png": (b"", "is no PNG, JPEG, WEBP or BMP picture"),
    "gif.png": (encoded(noise(), "GIF"), "is no PNG, JPEG, WEBP or BMP picture"),
    "print.jpg": (encoded(noise().convert("CMYK"), "JPEG"), "is a CMYK picture"),
    "moving.webp": (encoded(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]), "is animated"),
    "moving too.png": (encoded(frames()[0], "PNG", save_all=True, append_images=frames()[1:]), "is animated"),
    "cut.png": (encoded(cut_out(), "PNG"), "has transparent parts"),
    "palette.png": (encoded(noise().quantize(16), "PNG", transparency=3), "has transparent parts"),
}
BAD_CAPTIONS = {
    "a.txt": ("学生服, 笑顔".encode("cp932"), "is not UTF-8 but probably Shift-JIS (cp932); save it as UTF-8"),
    "b.txt": ("1girl, 笑顔".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "b2.txt": ("1girl, smile".encode("utf-16-le"), "is UTF-16; save it as UTF-8"),
    "c.txt": ("1girl, smile".encode("utf-8-sig"), "begins with a byte order mark (BOM)"),
    "d.txt": (b"", "is empty; write its tags, or delete the file"),
    "e.txt": (b" \t \n\n ", "is empty; write its tags, or delete the file"),
    "f.txt": (b"\nsmile", "has no tags on its first line"),
    "g.txt": (b"\x80\x81\xff", "is not UTF-8; save it as UTF-8"),
}


def test_all_bad_files_are_listed_at_once_and_nothing_changes(built_copy: Path) -> None:
    folder, before = built_copy / "pictures", contents(built_copy / "build")
    expected = []
    for name, (data, cause) in BAD_PICTURES.items():
        (folder / f"不 {name}").write_bytes(data)
        expected.append((f"pictures/不 {name}", cause))
    for name, (data, cause) in BAD_CAPTIONS.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".png").write_bytes(PNG)
        expected.append((f"pictures/{name}", f"the caption {cause}"))
    (built_copy / "class" / "bad.png").write_bytes(PNG[:100])  # another node's files are in the same list
    (built_copy / "class" / "bad.txt").write_text("smile", "utf-8")
    expected.append(("class/bad.png", "is truncated or damaged"))

    found = refused("build", "recipe.toml")

    assert [line.partition(": ")[0] for line in found] == sorted(place for place, _ in expected)
    for place, cause in expected:
        line = next(line for line in found if line.startswith(f"{place}: "))
        assert line.startswith(f"{place}: {cause}")
        assert ";" in line, "a remedy"
    assert contents(built_copy / "build") == before


def test_after_the_repair_the_build_goes_on(built_copy: Path) -> None:
    picture = next((built_copy / "pictures").glob("*.png"))
    good, before = picture.read_bytes(), contents(built_copy / "build")
    picture.write_bytes(good[:-40])
    assert len(refused("build", "recipe.toml")) == 1
    picture.write_bytes(good)
    assert lorac("build", "recipe.toml").exit_code == 0
    after = contents(built_copy / "build")
    for about in ("recipe/build.json", "recipe/build.html"):
        del before[about], after[about]
    assert after == before


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_no_beginning_of_a_picture_passes_for_the_picture(form: str) -> None:
    """Every cut is refused, except one so late that all pixels are there."""
    data = encoded(noise((24, 20)), form)
    whole = decode(data, None)
    for length in range(len(data)):
        try:
            assert decode(data[:length], None).tobytes() == whole.tobytes(), f"{length} of {len(data)} bytes"
        except Refused:
            continue
        assert length >= len(data) - 24, f"{length} of {len(data)} bytes"


def test_damaged_pictures_are_refused_or_read_but_never_crash() -> None:
    for form in ("PNG", "JPEG", "WEBP", "BMP"):
        data = bytearray(encoded(noise((24, 20)), form, **({"exif": _exif(6)} if form != "BMP" else {})))
        for number in range(150):
            stream = Stream(1, "damage", number)
            damaged = bytearray(data)
            for _ in range(1 + stream.below(4)):
                damaged[stream.below(len(data) if number % 2 else 200)] = stream.below(256)
            try:
                found = decode(bytes(damaged), "white").mode
            except Refused as refusal:
                found = str(refusal)
            assert found == "RGB" or "; " in found


def test_a_picture_that_claims_a_gigapixel_is_refused() -> None:
    header = bytearray(PNG)
    header[16:24] = (40_000).to_bytes(4, "big") * 2
    import zlib

    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(Refused, match="more than 64 million pixels; scale it down"):
        decode(bytes(header), None)


# -- unusual pictures that are understood ----------------------------------------------------------


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_are_put_upright(orientation: int) -> None:
    photograph = encoded(noise(), "JPEG", exif=_exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photograph))).convert("RGB")
    decoded = decode(photograph, None)
    assert decoded.size == ((66, 70) if orientation >= 5 else (70, 66))
    assert decoded.tobytes() == upright.tobytes()


def test_palette_pictures_have_their_colours() -> None:
    image = noise().quantize(32)
    assert decode(encoded(image, "PNG"), None).tobytes() == image.convert("RGB").tobytes()


def test_sixteen_bits_are_narrowed_to_the_upper_eight() -> None:
    values = [Stream(4, "deep").below(65536) for _ in range(1)] + [0, 255, 256, 65535, 0x1234]
    grey = Image.new("I;16", (len(values), 1))
    for x, value in enumerate(values):
        grey.putpixel((x, 0), value)
    high = bytes(value >> 8 for value in values for _ in range(3))
    assert decode(encoded(grey, "PNG"), None).tobytes() == high
    assert decode(_png_rgb16(values), None).tobytes() == high


def _png_rgb16(values: list[int]) -> bytes:
    """A PNG of 16 bits per channel, one grey pixel per value; Pillow cannot write one."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    row = b"\0" + b"".join(value.to_bytes(2, "big") * 3 for value in values)
    size = len(values).to_bytes(4, "big") + (1).to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([16, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("alpha", "colour"), [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#102030", (16, 32, 48))]
)
def test_transparency_shows_the_colour_that_the_recipe_chose(alpha: str, colour: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (3, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 0))
    image.putpixel((2, 0), (200, 100, 50, 128))
    decoded = decode(encoded(image, "PNG"), alpha)
    assert decoded.getpixel((0, 0)) == (200, 100, 50)
    assert decoded.getpixel((1, 0)) == colour
    half = decoded.getpixel((2, 0))
    assert isinstance(half, tuple)
    for value, front, behind in zip(half, (200, 100, 50), colour, strict=True):
        assert abs(value - (front * 128 + behind * 127) / 255) <= 1


def test_an_alpha_channel_without_transparency_needs_no_choice() -> None:
    image = noise()
    image.putalpha(255)
    assert decode(encoded(image, "PNG"), None).tobytes() == noise().tobytes()


def test_a_transparent_picture_is_fine_once_the_recipe_says_what_is_behind_it(built_copy: Path) -> None:
    (built_copy / "pictures" / "cut.png").write_bytes(encoded(cut_out(), "PNG"))
    (message,) = refused("build", "recipe.toml")
    remedy = re.search(r'add (alpha = "white")', message)
    assert remedy, message
    recipe = built_copy / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace("repeats = 2\n", f"repeats = 2\n{remedy[1]}\n"), "utf-8")
    (built_copy / "pictures" / "bad.png").write_bytes(b"")  # stops the build before it trains
    assert [line.partition(":")[0] for line in refused("build", "recipe.toml")] == ["pictures/bad.png"]


# -- folders ---------------------------------------------------------------------------------------


def test_one_stem_twice(built_copy: Path) -> None:
    before, folder = contents(built_copy / "build"), built_copy / "pictures"
    for name in ("same.png", "same.JPG", "other.png", "Other.webp"):
        (folder / name).write_bytes(PNG)
    found = refused("build", "recipe.toml")
    assert len(found) == 2
    assert "pictures/same.png: has the same name as same.JPG" in found[1]
    assert "pictures/other.png: has the same name as Other.webp" in found[0]
    assert all("rename one of them" in line for line in found)
    assert contents(built_copy / "build") == before


def test_missing_folder(built_copy: Path) -> None:
    before = contents(built_copy / "build")
    (built_copy / "pictures").rename(built_copy / "pictures2")
    (message,) = refused("build", "recipe.toml")
    assert re.match(r'recipe\.toml:3: .*"pictures".*pictures2', message), message
    assert contents(built_copy / "build") == before


@pytest.mark.parametrize("verb", ["build", "plan", "captions", "check"])
def test_a_folder_without_pictures(built_copy: Path, verb: str) -> None:
    before = contents(built_copy / "build")
    for picture in (built_copy / "pictures").glob("*.png"):
        picture.unlink()
    (message,) = refused(verb, "recipe.toml")
    assert 'no pictures in "pictures", only 3 .txt; lorac reads .bmp' in message
    assert contents(built_copy / "build") == before


@pytest.mark.parametrize("command", [["build"], ["build", "-n"], ["why"], ["check"]])
def test_every_unusable_folder_is_named_at_once(built_copy: Path, command: list[str]) -> None:
    for folder in ("pictures", "class"):
        for picture in (built_copy / folder).glob("*.png"):
            picture.unlink()
    found = refused(*command, "recipe.toml")
    assert len(found) == 2
    for folder in ("pictures", "class"):
        assert f'no pictures in "{folder}"' in "".join(found)


def test_a_picture_without_caption_and_trigger(built_copy: Path) -> None:
    for caption in (built_copy / "class").glob("*.txt"):
        caption.unlink()
    found = refused("build", "recipe.toml")
    assert [line.partition(": ")[0] for line in found] == ["class/絵 00.png", "class/絵 01.png"]
    assert all("the picture has no caption; write .txt files beside the pictures" in line for line in found)


def test_names_that_are_not_ascii(built: Path) -> None:
    """The folder of the fixture, the base and the pictures have Japanese names; the recipe gets one here."""
    assert not str(built).isascii()
    assert not (built / "recipe.toml").read_text("utf-8").isascii()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(built)
        shutil.copy("recipe.toml", "レシピ.toml")
        done = lorac("plan", "レシピ.toml")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("レシピ\n")
    assert "found" in done.stdout
    found, to_run = done.stdout.splitlines()[-3:-1]
    assert " train," in found, "the training is shared with the recipe of the other name"
    assert "train" not in to_run


# -- recipes ---------------------------------------------------------------------------------------


def test_three_mistakes_three_messages(built_copy: Path) -> None:
    before = contents(built_copy / "build")
    recipe = built_copy / "recipe.toml"
    text = recipe.read_text("utf-8")
    for old, new in (("repeats = 2", "repeat = 2"), ("dim = 2", 'dim = "two"'), ("epochs = 2", "epochs = -2")):
        text = text.replace(old, new, 1)
    recipe.write_text(text, "utf-8")
    lines = text.splitlines()
    found = refused("build", "recipe.toml")
    assert [line.split(": ")[0] for line in found] == [
        f"recipe.toml:{1 + lines.index(line)}" for line in ("repeat = 2", 'dim = "two"', "epochs = -2")
    ]
    assert "repeats" in found[0]
    assert contents(built_copy / "build") == before


@pytest.mark.parametrize("verb", ["build", "plan", "why", "graph", "check", "captions"])
def test_a_recipe_that_is_not_there(built_copy: Path, verb: str) -> None:
    (message,) = refused(verb, "recipes/recipe.toml")
    assert message == 'there is no recipe "recipes/recipe.toml"; did you mean "recipe.toml"?'


# -- bases -----------------------------------------------------------------------------------------


def with_nan(base: Path, target: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(base)
    with safe_open(base, "pt") as file:
        metadata = file.metadata()
    name = "model.diffusion_model.out.2.bias"
    tensors[name] = tensors[name].clone()
    tensors[name][1] = float("nan")
    save_file(tensors, target, metadata)


def only_the_unet(base: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({k: v for k, v in load_file(base).items() if k.startswith("model.")}, target)


BAD_BASES: dict[str, tuple[Callable[[Path, Path], object], list[str]]] = {
    "nan": (with_nan, ["bad.safetensors: tensor .*conv_out.bias holds NaN or infinity; the file is damaged"]),
    "unet": (only_the_unet, ["the checkpoint has no VAE", "the checkpoint has no text encoder"]),
    "truncated": (lambda base, target: target.write_bytes(base.read_bytes()[:-1000]), ["not a valid safetensors file"]),
    "text": (lambda base, target: target.write_bytes(b"a base, surely\n"), ["not a valid safetensors file"]),
    "empty": (lambda base, target: target.write_bytes(b""), ["not a valid safetensors file"]),
    "missing": (lambda base, target: None, ["bad.safetensors"]),
    "folder": (lambda base, target: target.mkdir(), ["bad.safetensors"]),
}


@pytest.mark.parametrize("name", BAD_BASES)
def test_unusable_bases(built_copy: Path, tiny_base: Path, name: str) -> None:
    make, expected = BAD_BASES[name]
    before = contents(built_copy / "build")
    make(tiny_base, built_copy / "bad.safetensors")
    found = refused("build", "recipe.toml", "--base", "bad.safetensors")
    assert len(found) == len(expected), found
    for line, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, line)
        assert "; " in line, "a remedy"
    assert contents(built_copy / "build") == before


def test_a_lora_is_no_base(built_copy: Path) -> None:
    (message,) = refused("build", "recipe.toml", "--base", "build/recipe/recipe.safetensors")
    assert message.startswith(
        "build/recipe/recipe.safetensors: this is a LoRA, not a base; lorac needs an SD1.x checkpoint"
    )


# -- disks -----------------------------------------------------------------------------------------


def comment(folder: Path, text: str) -> None:
    """An edit after which only export and report run again."""
    with (folder / "recipe.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[output]\ncomment = "{text}"\n')


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.mark.parametrize("what", ["build", ".lorac"])
def test_a_full_disk(built_copy: Path, small_disk: Path, what: str) -> None:
    before = contents(built_copy / "build")
    shutil.copytree(built_copy / what, small_disk / what)
    option = {"build": "--out", ".lorac": "--store"}[what]
    filler = small_disk / "filler"
    fill(filler)
    comment(built_copy, "a remark " * 1000)
    earlier = contents(small_disk / what)
    (message,) = refused("build", "recipe.toml", option, small_disk / what)
    assert re.search("no space left|full", message)
    assert "free some space" in message
    if what == "build":
        assert contents(small_disk / what) == earlier
    assert contents(built_copy / "build") == before

    filler.unlink()
    assert lorac("build", "recipe.toml", option, small_disk / what).exit_code == 0


def test_a_disk_that_is_full_when_blobs_are_flushed(built_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(built_copy / "build")
    comment(built_copy, "a remark")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        (message,) = refused("build", "recipe.toml")
    assert "no space left on the disk; free some space and build again" in message
    assert contents(built_copy / "build") == before
    assert lorac("build", "recipe.toml").exit_code == 0


def test_an_output_folder_that_is_a_file(built_copy: Path) -> None:
    """Refused before anything runs."""
    (built_copy / "out").write_text("mine", "utf-8")
    done = lorac("build", "recipe.toml", "--out", "out", "--json")
    assert done.exit_code == 2
    assert "out: is a file where the folder of the outputs must be; move it" in done.stderr
    assert done.stdout == ""
    assert (built_copy / "out").read_text("utf-8") == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_an_output_folder_without_permission(built_copy: Path) -> None:
    (built_copy / "out").mkdir(mode=0o500)
    (message,) = refused("build", "recipe.toml", "--out", "out")
    assert "out: cannot be written; check the folder's permissions" in message


def test_a_store_that_is_a_file(built_copy: Path) -> None:
    (built_copy / "store").write_text("mine", "utf-8")
    (message,) = refused("build", "recipe.toml", "--store", "store")
    assert "store" in message
    assert (built_copy / "store").read_text("utf-8") == "mine"


def test_an_unknown_value_on_the_command_line(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_project(tmp_path, tiny_base))
    (message,) = refused("plan", "recipe.toml", "--set", "network.dimm=4")
    assert message.startswith("--set ")
    assert '"dim"' in message
