"""`recipes/KEYS.md` is the schema's table, whole and current."""

from __future__ import annotations

import re
from pathlib import Path

from lorac.recipe.keys import markdown
from lorac.recipe.schema import SECTIONS, keys
from lorac.recipe.sections.network import Network

PAGE = Path(__file__).parent.parent / "recipes" / "KEYS.md"
PAPERS = {
    "min_snr_gamma": "2303.09556",
    "debiased_estimation_loss": "2310.08442",
    "ip_noise_gamma": "2301.11706",
    "noise_offset": "Guttenberg",
    "multires_noise_iterations": "Whitaker",
    "loss_type": "2403.16728",
    "zero_terminal_snr": "2305.08891",
    "conv_dim": "2309.14859",
    "dora": "2402.09353",
    "rslora": "2312.03732",
    "loraplus_lr_ratio": "2402.12354",
    "optimizer": "2405.15682",
    "ema_decay": "d = min(decay, (1 + n) / (10 + n))",
}


def rows() -> dict[str, list[str]]:
    """Cells of each row by section and key: `[train] seed`."""
    found, section = {}, ""
    for line in markdown().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip("`")
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 6, line
            found[f"{section} {cells[0].strip('`')}"] = cells[1:]
    return found


def test_the_committed_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == markdown(), "run: lorac schema --markdown > recipes/KEYS.md"


def test_every_key_has_a_row() -> None:
    page = rows()
    brackets = {name: f"[[{name}]]" if name in ("source", "regularisation") else f"[{name}]" for name in SECTIONS}
    wanted = {f"{brackets[name]} {key}" for name, section in SECTIONS.items() for key in keys(section)}
    assert wanted <= page.keys()
    beside = {"preset", "extends", "matrix"}
    assert {name.removeprefix("Before the sections ") for name in page.keys() - wanted} >= beside
    assert all(cells[0] and cells[3] for cells in page.values())


def test_rows_say_type_default_kohyas_name_and_metadata() -> None:
    page = rows()
    default = f"`{Network().dim}`"
    assert page["[network] dim"][:3] == ["a whole number from 1 to 1024", default, "`network_dim`"]
    assert page["[network] dim"][4] == "`ss_network_dim`"
    assert page["[[source]] path"][1] == "needed"
    assert page["[loss] min_snr_gamma"][1] == ""
    assert page["[train] lr_warmup_steps"][0] == "a number of steps, or a share of the run below 1"
    assert page["[output] precision"][1] == '`"fp16"`'


def test_training_features_name_their_source() -> None:
    page = {name.partition("] ")[2]: cells for name, cells in rows().items() if name.startswith("[")}
    for name, word in PAPERS.items():
        assert word in page[name][3], name
