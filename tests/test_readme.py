"""README is true: its recipe compiles, its commands exist, its message is the one that is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from lorac.cli import main
from lorac.recipe.load import load
from tests.tiny import draw_pictures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = (line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines())
    return [line for line in lines if line]


def test_the_recipe_compiles(tmp_path: Path, tiny_base: Path) -> None:
    (text,) = blocks("toml")
    draw_pictures(tmp_path / "pictures", 3)
    (tmp_path / "nai-full.safetensors").write_bytes(tiny_base.read_bytes())
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    (recipe,) = load([tmp_path / "mine.toml"])
    assert recipe.sources[0].trigger == ("izumi riho",)
    assert len([line for line in text.splitlines() if line]) <= 14


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("lorac")])
def test_every_verb_and_file_exists(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    assert verb in main.commands
    for argument in arguments:
        if argument.startswith("recipes/"):
            assert (ROOT / argument).exists()
    assert CliRunner().invoke(main, [verb, "--help"]).exit_code == 0


def test_the_make_targets_exist() -> None:
    targets = {c.split()[1] for c in commands() if c.startswith("make ")}
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_message_is_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = (block for block in blocks("text") if block.startswith("lorac: recipes/riho.toml:12"))
    monkeypatch.chdir(tmp_path)
    lines = ["[[source]]", 'path = "."', *[""] * 8, "[train]", "lerning_rate = 1e-4", "epochs = 1"]
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "riho.toml").write_text("\n".join(lines), encoding="utf-8")
    result = CliRunner().invoke(main, ["plan", "recipes/riho.toml"])
    assert result.exit_code == 2
    assert shown.strip() in result.output


def test_exit_codes_are_those_of_the_errors() -> None:
    from lorac import errors

    table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", README, re.MULTILINE))
    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    assert {int(code) for code in table} == codes | {0}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
