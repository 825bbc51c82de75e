"""Every verb as a user calls it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorac.cli import main
from tests.running import contents, lorac, refused
from tests.tiny import draw_pictures, make_project

ROOT = Path(__file__).parent.parent
RIHO = ROOT / "recipes" / "riho_head.toml"
VERBS = [
    "init",
    "import",
    "build",
    "plan",
    "why",
    "check",
    "captions",
    "tag",
    "graph",
    "inspect",
    "schema",
    "completion",
]
KINDS = {
    "base", "weights", "source", "image", "caption", "tokens", "latent", "schedule", "train", "export", "draw",
    "sidecar", "report",
}  # fmt: skip


def output(*arguments: object) -> str:
    """What a call that must succeed prints."""
    done = lorac(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def events(*arguments: object) -> list[dict[str, Any]]:
    done = lorac("build", "--json", *arguments)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def append(text: str) -> None:
    with Path("recipe.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")


@pytest.fixture
def fresh(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that was never built, as the working directory."""
    monkeypatch.chdir(make_project(tmp_path, tiny_base))
    return tmp_path


@pytest.fixture
def reading(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The built project itself, for tests that change nothing."""
    monkeypatch.chdir(built)
    return built


# -- the command itself ----------------------------------------------------------------------------


def test_help_lists_the_verbs_and_the_exit_codes() -> None:
    text = output("--help")
    assert re.findall(r"^  ([a-z]+)  ", text, re.MULTILINE)[: len(VERBS)] == VERBS == list(main.commands)
    assert not re.search(r"^  [a-z]+  .*\.\.\.$", text, re.MULTILINE), "no summary is cut"
    for code in ("0    done", "1    training diverged", "2    bad input", "130  interrupted"):
        assert code in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    text = output(verb, "-h")
    assert text.startswith(f"Usage: main {verb} ")
    summary = text.splitlines()[2].strip()
    assert summary
    assert summary[0].isupper()


def test_build_names_its_options() -> None:
    text = output("build", "--help")
    for option in ("-n, --dry-run", "-j, --jobs", "-k, --keep-going", "--set", "--base", "--out", "--store", "--json"):
        assert option in text


def test_the_version_is_the_package_s() -> None:
    from importlib.metadata import version

    assert output("--version").split()[-1] == version("lorac")


@pytest.mark.parametrize(
    "arguments", [["bake"], ["build"], ["build", "-j", "0", "x.toml"], ["graph", "--format", "svg", "x.toml"]]
)
def test_a_wrong_call_ends_with_2_and_a_hint(arguments: list[str]) -> None:
    done = lorac(*arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_behind_standard_output() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lorac", "schema"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 2
    assert done.stderr == "lorac: the output: no space left on the disk; free some space\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    script = output("completion", shell)
    assert "_LORAC_COMPLETE" in script
    assert "lorac" in script


def test_completion_completes() -> None:
    variables = {"_LORAC_COMPLETE": "bash_complete", "COMP_WORDS": "lorac b", "COMP_CWORD": "1"}
    code = "from lorac.cli import main; main(prog_name='lorac')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.stdout == "plain,build\n"


def test_schema_is_the_committed_one() -> None:
    assert output("schema") == (ROOT / "recipes" / "lorac.schema.json").read_text("utf-8")


# -- build -----------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_run_and_makes_nothing(fresh: Path) -> None:
    lines = output("build", "-n", "recipe.toml").splitlines()
    assert lines[0] == "recipe"
    assert "  image[pictures]    will run  3 of 3" in lines
    assert "  source[pictures]   found          3" in lines
    assert "  train              may run" in lines
    assert lines[-1] == "3 found, 5 will run, 11 may run"
    assert not Path("build").exists() and not Path(".lorac").exists()


def test_a_dry_run_of_what_is_built_finds_everything(reading: Path) -> None:
    lines = output("build", "-n", "recipe.toml").splitlines()
    assert "  caption[pictures]  found          3" in lines
    assert lines[-1] == "19 found"
    facts = [json.loads(line) for line in output("build", "-n", "--json", "recipe.toml").splitlines()]
    assert {fact["outlook"] for fact in facts} == {"found"}
    assert {fact["node"].partition(":")[2].partition("[")[0] for fact in facts} == KINDS
    assert {"node": "recipe:caption[pictures]", "outlook": "found", "todo": 0, "total": 3} in facts


def test_events_tell_the_story_in_order(built_copy: Path) -> None:
    append('[output]\ncomment = "another"')
    found = events("recipe.toml", "-j", "1")
    kinds = [event["event"] for event in found]
    assert kinds[0] == "BuildStarted"
    assert kinds[-1] == "BuildFinished"
    assert found[0]["recipes"] == ["recipe"]
    assert "FileWritten" not in kinds[: len(kinds) - 1 - kinds[::-1].index("NodeFinished")]

    started = {event["node"]: place for place, event in enumerate(found) if event["event"] == "NodeStarted"}
    finished = {event["node"]: place for place, event in enumerate(found) if event["event"] == "NodeFinished"}
    assert started.keys() == {f"recipe:{kind}" for kind in ("export", "sidecar", "report")}, "of a comment"
    assert all(place < finished[node] for node, place in started.items())
    progress = [place for place, event in enumerate(found) if event["event"] == "NodeProgress"]
    assert all(started[found[place]["node"]] < place < finished[found[place]["node"]] for place in progress)

    facts = json.loads(Path("build/recipe/build.json").read_text("utf-8"))
    totals = {event["kind"]: 0 for event in found if event["event"] == "NodeFinished"}
    for event in found:
        if event["event"] == "NodeFinished":
            totals[event["kind"]] += event["ran"]
    assert {kind: entry["runs"] for kind, entry in facts["kinds"].items() if kind in totals} == totals
    assert facts["runs"] == sum(totals.values()) == found[-1]["ran"]

    written = {event["path"]: event for event in found if event["event"] == "FileWritten"}
    assert {path: event["changed"] for path, event in written.items()} == {
        "build/recipe/recipe.safetensors": True,
        "build/recipe/recipe-000001.safetensors": True,
        "build/recipe/recipe.json": True,
        "build/recipe/recipe.png": False,
        "build/recipe/report.html": True,
    }
    for path, event in written.items():
        data = Path(path).read_bytes()
        assert (event["sha256"], event["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        assert facts["outputs"][Path(path).name] == {"sha256": event["sha256"], "bytes": len(data)}


def test_a_failed_build_says_so_in_its_last_event(built_copy: Path) -> None:
    (built_copy / "pictures" / "bad.png").write_bytes(b"")
    done = lorac("build", "--json", "recipe.toml")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 2
    assert found[-1]["event"] == "BuildFinished"
    assert found[-1]["ok"] is False
    assert [event["node"] for event in found if event["event"] == "Failure"] == ["recipe:image[pictures]"]


NULL_BUILD = """
import sys
from lorac.cli import main
main(["build", "recipe.toml"], standalone_mode=False)
print(sorted({"torch", "numpy", "PIL", "transformers", "tokenizers", "rich"} & sys.modules.keys()))
"""


def test_a_null_build_runs_nothing_and_imports_nothing_heavy(built_copy: Path) -> None:
    lorac("build", "recipe.toml")  # the copied files are new to the store
    before = contents(built_copy / "build")
    done = subprocess.run(
        [sys.executable, "-c", NULL_BUILD], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert done.stdout == "[]\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r" +[0-9.]+ k?B  build/recipe/\S+  \(unchanged\)", line) for line in lines[:-1])
    assert re.fullmatch(r"0 made, 30 found, \d+\.\d s", lines[-1])
    facts = json.loads((built_copy / "build/recipe/build.json").read_text("utf-8"))
    assert facts["runs"] == 0
    assert facts["hits"] == 30
    after = contents(built_copy / "build")
    for about in ("recipe/build.json", "recipe/build.html"):
        del before[about], after[about]
    assert after == before, "neither bytes nor times of the outputs change"


def test_a_budget_is_for_what_is_to_be_trained(built_copy: Path) -> None:
    """What is built already needs none."""
    done = lorac("build", "recipe.toml", "--budget", "1MiB")
    assert done.exit_code == 0 and "0 made, 30 found" in done.output
    (problem,) = refused("build", "recipe.toml", "--budget", "1MiB", "--set", "train.epochs=3")
    assert "training needs" in problem


def test_other_places_base_and_settings(built_copy: Path, tiny_base: Path) -> None:
    shutil.copy(tiny_base, "other base.safetensors")
    shutil.copytree(".lorac", "store")
    output("build", "recipe.toml", "--out", "out/deep", "--store", "store", "--base", "other base.safetensors")
    made = Path("out/deep/recipe/recipe.safetensors").read_bytes()
    assert (
        made
        == Path("build/recipe/recipe.safetensors")
        .read_bytes()
        .replace(tiny_base.name.encode(), b"other base.safetensors")
        or b"other base.safetensors" in made
    )
    text = output(
        "plan", "recipe.toml", "--set", "train.epochs=5", "--set", 'output.name="x"', "--set", "network.dim=16"
    )
    assert text.startswith("x\n")
    assert "60 steps = 5 epochs" in text
    assert "dim 16, alpha 2" in text


def test_two_recipes_share_what_is_equal(built_copy: Path) -> None:
    text = (built_copy / "recipe.toml").read_text("utf-8")
    (built_copy / "second.toml").write_text(f'{text}\n[output]\ncomment = "second"\n', "utf-8")
    listing = output("build", "-n", "recipe.toml", "second.toml").splitlines()
    assert listing[listing.index("second") + 1 :][-2] == "  and 16 nodes that are listed above"
    done = lorac("build", "recipe.toml", "second.toml")
    assert done.exit_code == 0, done.output
    assert re.search(r"^4 made, 30 found", done.stderr, re.MULTILINE), done.stderr
    assert Path("build/second/second-000001.safetensors").exists()
    first, second = (json.loads(Path(f"build/{name}/build.json").read_text("utf-8")) for name in ("recipe", "second"))
    assert first["runs"] == 0
    assert second["runs"] == 4
    assert second["kinds"]["train"] == {**second["kinds"]["train"], "runs": 0, "hits": 2}


def test_keep_going_builds_what_does_not_depend_on_the_failure(built_copy: Path) -> None:
    append('[output]\ncomment = "new"')
    text = (built_copy / "recipe.toml").read_text("utf-8")
    (built_copy / "broken.toml").write_text(text.replace('path = "pictures"', 'path = "broken"'), "utf-8")
    (built_copy / "broken").mkdir()
    (built_copy / "broken" / "bad.png").write_bytes(b"no picture")
    before = contents(built_copy / "build")

    (message,) = refused("build", "recipe.toml", "broken.toml")
    assert message.startswith("broken/bad.png: ")
    assert contents(built_copy / "build") == before

    (message,) = refused("build", "-k", "recipe.toml", "broken.toml")
    assert message.startswith("broken/bad.png: ")
    assert (built_copy / "build/recipe/recipe.safetensors").read_bytes().count(b'"ss_training_comment":"new"') == 1
    assert not (built_copy / "build/broken/broken.safetensors").exists()


def test_the_terminal_shows_bars_and_the_log_lines() -> None:
    from lorac.engine.console import LiveConsole, PlainConsole, console
    from lorac.engine.events import Event, FileWritten, NodeFinished, NodeProgress, NodeStarted

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert type(console(io.StringIO())) is PlainConsole
    terminal = Terminal()
    live = console(terminal)
    assert isinstance(live, LiveConsole)
    story: list[Event] = [
        NodeStarted("a:train", "train", 2, 2),
        NodeProgress("a:train", "train", 10, 100, "steps, loss 0.5"),
        NodeFinished("a:train", "train", 2, 2, 12.5, {"steps": 100.0, "seconds": 12.5}),
        FileWritten("build/a/a.safetensors", "", 5_867_849, True),
    ]
    for event in story:
        live(event)
    live.close()
    shown = terminal.getvalue()
    assert "steps, loss 0.5" in shown
    assert "2 of 2     12.5 s, 100 steps, 8.0 steps/s" in shown
    assert "    5.9 MB  build/a/a.safetensors" in shown


# -- plan, why -------------------------------------------------------------------------------------


def test_plan_has_the_figures_of_the_article(fresh: Path, tiny_base: Path) -> None:
    text = output("plan", RIHO, "--base", tiny_base)
    for row in (
        r"source +\S+/riho_head: 13 x 36 repeats = 468",
        r"matched one to one: 468 regularisation samples beside 468",
        r"epoch +936 steps of batch 1, 936 samples",
        r"run +2808 steps = 3 epochs; a training picture is seen 108 times",
        r"buckets +64x64 \(936\)",
        r"cosine_with_restarts, 28 steps of warm-up",
        r"network +dim 128, alpha 128, U-Net and text encoder",
        r"files +riho_head-000001.safetensors, riho_head-000002.safetensors, riho_head.safetensors",
        r"will run +weights, image\[riho_head\] \(13 of 13\)",
    ):
        assert re.search(rf"^  .*{row}", text, re.MULTILINE), row
    without = output("plan", RIHO, "--base", tiny_base, "--set", "regularisation=[]")
    assert "1404 steps = 3 epochs" in without


def test_plan_sorts_pictures_into_buckets_upright_and_names_the_unusable(fresh: Path) -> None:
    folder = fresh / "pictures"
    Image.new("RGB", (200, 100)).save(folder / "wide.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (200, 100)).save(folder / "turned.jpg", exif=turned)
    (folder / "bad.png").write_bytes(b"")
    done = lorac("plan", "recipe.toml", "--set", "train.batch_size=4", "--set", "regularisation=[]")
    assert done.exit_code == 2
    (problem,) = done.stderr.splitlines()
    assert problem.startswith("lorac: pictures/bad.png: is no PNG") and "remove it from the folder" in problem
    text = done.stdout
    (row,) = re.findall(r"^  buckets +(.*)$", text, re.MULTILINE)
    sizes = dict(part.removesuffix(")").split(" (") for part in row.split(", "))
    assert sizes.pop("unusable") == "2"
    tall, square, wide = sorted(sizes, key=lambda size: int(size.split("x")[0]))
    assert (sizes[square], sizes[wide], sizes[tall]) == ("6", "2", "2")
    assert wide.split("x") == tall.split("x")[::-1]
    # Batches never mix buckets: ceil(6/4) + 3 ceil(2/4) = 5.
    assert re.search(r"epoch +5 steps of batch 4, 12 samples", text)


def edit_caption(folder: Path) -> None:
    path = folder / "pictures" / "絵 01.txt"
    path.write_text(f"{path.read_text('utf-8')}, hat", "utf-8")


def resave(folder: Path) -> None:
    path = folder / "pictures" / "絵 01.png"
    Image.open(path).save(path, compress_level=1)


def add_picture(folder: Path) -> None:
    draw_pictures(folder / "more", 1, seed=9)
    for path in (folder / "more").iterdir():
        path.rename(folder / "pictures" / f"new{path.suffix}")


def remove_picture(folder: Path) -> None:
    for path in list((folder / "pictures").glob("絵 01.*")):
        path.unlink()


def comment(folder: Path) -> None:
    append('[output]\ncomment = "see my page"')


def longer(folder: Path) -> None:
    path = folder / "recipe.toml"
    path.write_text(path.read_text("utf-8").replace("repeats = 2", "repeats = 3"), "utf-8")


SCENARIOS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "caption": (
        edit_caption,
        [
            r"source\[pictures\] +changed +caption changed: 絵 01.png",
            r"caption\[pictures\] +1 of 3 to make +caption of source\[pictures\] changed \(1 of 3\)",
            r"  tokens\[pictures\], schedule, train, export, draw, sidecar, report",
        ],
    ),
    "same pixels": (
        resave,
        [
            r"source\[pictures\] +changed +picture changed: 絵 01.png",
            r"image\[pictures\] +1 of 3 to make +picture of source\[pictures\] changed \(1 of 3\)",
            r"  latent\[pictures\], schedule, train, export, draw, sidecar, report",
        ],
    ),
    "picture": (
        add_picture,
        [
            r"source\[pictures\] +changed +added: new.png",
            r"image\[pictures\] +1 of 4 to make +picture of source\[pictures\] changed \(1 of 4\)",
            r"caption\[pictures\] +1 of 4 to make +caption of source\[pictures\] changed \(1 of 4\)",
            r"  tokens\[pictures\], latent\[pictures\], schedule, train, export, draw, sidecar, report",
        ],
    ),
    "one picture less": (
        remove_picture,
        [
            r"source\[pictures\] +changed +removed: 絵 01.png",
            r"image\[pictures\] +found +picture of source\[pictures\] changed \(1 removed\)",
            r"caption\[pictures\] +found +caption of source\[pictures\] changed \(1 removed\)",
            r"  tokens\[pictures\], latent\[pictures\], schedule, train, export, draw, sidecar, report",
        ],
    ),
    "comment": (
        comment,
        [
            r'export +2 of 2 to make +output.comment: "" → "see my page"',
            r'report +to make +comment: "" → "see my page"',
        ],
    ),
    "repeats": (
        longer,
        [r"schedule +to make +subsets 1.repeats: 2 → 3", r"  train, export, draw, sidecar, report"],
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_why_explains_an_edit_in_one_screen(built_copy: Path, name: str) -> None:
    lorac("build", "recipe.toml")
    edit, expected = SCENARIOS[name]
    edit(built_copy)
    lines = output("why", "recipe.toml").splitlines()
    assert lines[0] == "recipe: the next build has work to do"
    for pattern in expected:
        assert sum(bool(re.match(f"  {pattern}$", line)) for line in lines) == 1, (pattern, lines)
    nodes = [line for line in lines[1:] if re.match(r"  \w", line) and not line.startswith("  and")]
    patterns = [pattern for pattern in expected if not pattern.startswith("  ")]
    assert len(nodes) == len(patterns), "nothing else is named"
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


def test_why_explains_what_the_last_build_did(built_copy: Path) -> None:
    lorac("build", "recipe.toml")
    resave(built_copy)
    output("build", "recipe.toml")
    lines = output("why", "recipe.toml").splitlines()
    assert re.match(r"recipe: up to date; what the last build with changes, number \d+, did and why", lines[0])
    assert lines[1] == "  source[pictures]  read         picture changed: 絵 01.png"
    assert lines[2] == "  image[pictures]   1 of 3 made  picture of source[pictures] changed (1 of 3)"
    assert len(lines) == 3, "equal pixels stop there"

    revert = built_copy / "pictures" / "絵 01.png"
    Image.open(revert).save(revert)
    lines = output("why", "recipe.toml").splitlines()
    assert lines[0] == "recipe: the next build finds everything; other than in the last one are"
    assert lines[1] == "  source[pictures]  changed  picture changed: 絵 01.png"
    assert lines[2] == "  image[pictures]   found    picture of source[pictures] changed (1 of 3)"


def test_why_calls_what_is_read_by_the_users_names(built_copy: Path) -> None:
    lorac("build", "recipe.toml")
    edit_caption(built_copy)
    output("build", "recipe.toml")
    text = " ".join(output("why", "recipe.toml:report").split())
    assert "text as written of caption[pictures] changed (1 of 3)" in text and "raw of" not in text
    assert "steps of schedule changed" in " ".join(output("why", "recipe.toml:train").split())


def test_why_of_one_node(reading: Path) -> None:
    lines = output("why", "recipe.toml:tokens[class]").splitlines()
    assert lines[1:] == ["  tokens[class]  2 of 2 made  built for the first time"]
    lines = output("why", "recipe.toml:latent").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["latent[pictures]", "latent[class]"]


def test_why_of_an_unknown_node_names_the_known_ones(reading: Path) -> None:
    (message,) = refused("why", "recipe.toml:captoin")
    assert message.startswith('recipe.toml:captoin: there is no node "captoin"; choose one of base, caption,')
    for kind in KINDS:
        assert kind in message


# -- graph, captions, check, inspect ---------------------------------------------------------------


def test_the_graph_in_three_forms(reading: Path) -> None:
    facts = json.loads(output("graph", "--format", "json", "recipe.toml"))
    names = [node["names"][0] for node in facts["nodes"]]
    assert {node["kind"] for node in facts["nodes"]} == KINDS
    edges = {(names[edge["from"]], names[edge["to"]]): edge["outputs"] for edge in facts["edges"]}
    assert edges["recipe:weights", "recipe:train"] == ["unet", "text"]
    assert edges["recipe:source[class]", "recipe:caption[class]"] == ["caption"]
    assert all(edge["from"] < edge["to"] for edge in facts["edges"]), "in the order of dependency"
    assert {output["file"] for output in facts["outputs"]} >= {"recipe.safetensors", "recipe.json", "report.html"}

    dot, mermaid = output("graph", "recipe.toml"), output("graph", "--format", "mermaid", "recipe.toml")
    assert re.findall(r'^  n\d+ \[label = "(.*)"\];$', dot, re.MULTILINE) == names
    assert len(re.findall(r"n\d+ -> n\d+", dot)) == len(facts["edges"])
    assert (dot.count("{"), dot.count("}")) == (1, 1)
    assert mermaid.startswith("flowchart LR\n")
    assert re.findall(r'n\d+\["(.*)"\]', mermaid) == names
    assert len(re.findall(r"n\d+ -->\|.*\| n\d+", mermaid)) == len(facts["edges"])


@pytest.mark.parametrize("verb", ["graph", "captions", "check"])
def test_verbs_that_look_make_no_store(fresh: Path, verb: str) -> None:
    lorac(verb, "recipe.toml")
    assert not Path(".lorac").exists()


def test_captions_are_counted_as_transformers_counts_them(fresh: Path) -> None:
    from transformers import CLIPTokenizer

    from lorac.sd.tokenizer import vocabulary

    long = ", ".join(f"very long tag number {number}" for number in range(20))
    (fresh / "pictures" / "絵 02.txt").write_text(f"1girl, (smile:1.2), {long}, 日本語", "utf-8")
    reference = CLIPTokenizer(*vocabulary())
    lines = output("captions", "recipe.toml").splitlines()
    assert lines[0] == "recipe: tokens (cut off at 75), picture, final caption"
    rows = [match for line in lines if (match := re.match(r" *(\d+)  ((?:pictures|class)/絵 \d\d\.png)  (.*)", line))]
    assert len(rows) == 5
    for row in rows:
        assert int(row[1]) == len(reference(row[3], add_special_tokens=False)["input_ids"]), row[3]
    assert rows[0][3].startswith("izumi riho, colour ")
    assert rows[3][3].startswith("1girl, solo, "), "regularisation captions stay as they are"

    (cut,) = [line for line in lines if "cut off, in the order written: " in line]
    lost = cut.partition("written: ")[2].split(", ")
    kept = rows[2][3].removesuffix(f", {', '.join(lost)}")
    assert len(reference(kept, add_special_tokens=False)["input_ids"]) <= 75
    assert len(reference(f"{kept}, {lost[0]}", add_special_tokens=False)["input_ids"]) > 75
    assert lost[-1] == "日本語"


QUIET = {"train.learning_rate": "1e-4"}
"""The project's recipe has one finding, L007; with these settings it has none."""
LONG = ", ".join(f"tag number {number}" for number in range(40))
FINDINGS: list[tuple[str, dict[str, str], str | None, str]] = [
    ("L001", {"caption.exclude": '["1girl", "solo", "smlie"]'}, None, r'"smlie" meets no tag; did you mean "smile"\?'),
    ("L001", {"caption.replace": '{"thnig 1" = "hat"}'}, None, r'"thnig 1" meets no tag; did you mean "thing \d"\?'),
    (
        "L002",
        {},
        LONG,
        r"pictures/絵 00.txt: L002 the caption has \d+ tokens, \d+ of its tags are behind the limit of 75; raise",
    ),
    ("L003", {"caption.exclude": "[]"}, None, r'"1girl" stays in 3 captions'),
    ("L004", {"source[0].trigger": "[]"}, None, r"recipe.toml:3: L004 the source has no trigger words"),
    (
        "L005",
        {"caption.keep_tokens": "0"},
        None,
        r"shuffling moves the 1 trigger tags of pictures; set keep_tokens = 1",
    ),
    ("L006", {"source[0].repeats": "10"}, None, r"2 regularisation pictures fill 30 samples an epoch"),
    ("L007", {"train.learning_rate": "1e-3"}, None, r"above 0.0005: such runs diverge; lower alpha"),
    ("L010", {"caption.keep_tokens_separator": "///"}, None, r'L010 the mark "///" is in no caption'),
    ("L011", {}, "{red|blue} hat", r"絵 00.txt: L011 the caption has a choice .*; set caption.enable_wildcard = true"),
    ("L011", {}, "hat ||| cat", r'L011 the caption has the mark |||.*; set caption.keep_tokens_separator = "|||"'),
    ("L012", {"validation.split": "0.2"}, None, r"0.2 of 3 pictures holds out none for validation; give at least 0.34"),
]


def check(settings: dict[str, str]) -> tuple[int, list[str]]:
    sets = [part for key, value in {**QUIET, **settings}.items() for part in ("--set", f"{key}={value}")]
    done = lorac("check", "recipe.toml", *sets)
    return done.exit_code, done.stdout.splitlines()


CONSTANT = {"train.lr_scheduler": "constant", "train.lr_warmup_steps": "0"}


@pytest.mark.parametrize(
    ("settings", "strength"),
    [
        ({"train.learning_rate": "1", "train.optimizer": "prodigy"}, None),
        ({"train.learning_rate": "1e-3", "train.optimizer": "adafactor", **CONSTANT}, None),
        (
            {
                "train.learning_rate": "1e-3",
                "train.optimizer": "adafactor",
                "train.optimizer_args": "{relative_step = false}",
            },
            "alpha / dim is 0.001,",
        ),
        ({"train.learning_rate": "4e-4", "network.rslora": "true"}, "alpha / √dim is 0.0008,"),  # 4e-4 x 4 / 2
        ({"train.learning_rate": "2e-4", "network.rslora": "true"}, None),
    ],
)
def test_check_knows_how_strongly_a_lora_learns(fresh: Path, settings: dict[str, str], strength: str | None) -> None:
    """Prodigy and adafactor make the rate themselves; rsLoRA works at alpha / √dim."""
    status, lines = check({**settings, "network.dim": "4", "network.alpha": "4"})
    assert status == (strength is not None), lines
    lines = [line for line in lines if "L007" in line]
    assert len(lines) == (strength is not None)
    assert strength is None or strength in lines[0]


def test_check_and_plan_name_what_a_build_would_refuse(fresh: Path) -> None:
    """Transparent parts without alpha, and pictures without a caption; a tagger would write those."""
    Image.new("RGBA", (72, 64), "blue").save(fresh / "pictures" / "opaque.png")
    cut = Image.new("RGBA", (72, 64), "red")
    cut.putpixel((3, 3), (0, 0, 0, 0))
    cut.save(fresh / "pictures" / "cut.png")
    silent = {"source[0].trigger": "[]"}
    lines = check(silent)[1]
    assert any(
        re.search(r"toml:3: L008 1 of 5 pictures .* first pictures/cut.png; .* alpha = \"white\"", x) for x in lines
    )
    assert any(
        re.search(r"toml:3: L009 2 of 5 pictures have no caption, first pictures/cut.png; write .txt", x) for x in lines
    )
    done = lorac("plan", "recipe.toml", "--set", "source[0].trigger=[]")
    assert done.exit_code == 2
    cut_out, untold = done.stderr.splitlines()
    assert cut_out.startswith("lorac: pictures/cut.png: has transparent parts") and 'add alpha = "white"' in cut_out
    assert "toml:3: 2 of 5 pictures have no caption, first pictures/cut.png; write .txt files" in untold
    text = done.stdout
    assert "unusable        2 pictures may have transparent parts, with no alpha" in text
    assert "unusable        2 pictures without a caption" in text
    settled = {"source[0].alpha": "drop"}
    (code,) = [line.split()[1] for line in check(settled)[1]]
    assert code == "L039", "no captions for two of them, but trigger words"
    text = output("plan", "recipe.toml", "--set", "source[0].alpha=drop")
    assert "unusable" not in text
    assert "captions        2 of 5 pictures have no .txt file: the trigger words alone\n" in text
    tagged = output("plan", "recipe.toml", "--set", "source[0].alpha=drop", "--set", "tagger.model=builtin:mini")
    assert " captions " not in tagged
    (fresh / "pictures" / "cut.png").unlink()  # what is opaque is no reason to refuse anything
    assert "1 picture may have transparent parts" in output("plan", "recipe.toml")


def test_plan_shows_accumulation_validation_and_whole_numbers(fresh: Path) -> None:
    sets = [
        "train.gradient_accumulation_steps=4",
        "validation.split=0.4",
        "train.flip_aug=true",
        "source[0].alpha_mask=true",
    ]
    text = output("plan", "recipe.toml", *(part for one in sets for part in ("--set", one)))
    for row in (
        r"source +pictures: 2 x 2 repeats = 4, 1 of 3 held out, loss masked by opacity",
        r"epoch +2 steps of 4 batches of 1, 8 samples",
        r"pictures are mirrored half of the times",
        r"run +4 steps = 2 epochs; a training picture is seen 4 times",
        r"validation +1 picture held out of training, measured at timesteps 200, 400, 600, 800",
    ):
        assert re.search(rf"^  .*{row}$", text, re.MULTILINE), (row, text)
    for steps, epochs in ((12, "1 epoch;"), (1, "0.08 epochs;"), (16, "1.33 epochs;")):
        assert f"= {epochs}" in output("plan", "recipe.toml", "--set", f"train.steps={steps}")


@pytest.mark.parametrize(("code", "settings", "caption", "pattern"), FINDINGS)
def test_check_finds(fresh: Path, code: str, settings: dict[str, str], caption: str | None, pattern: str) -> None:
    assert check({}) == (0, []), "without the mistake there is no finding"
    if caption is not None:
        (fresh / "pictures" / "絵 00.txt").write_text(caption, "utf-8")
    exit_code, lines = check(settings)
    assert exit_code == 1
    assert {line.split()[line.split().index(code)] for line in lines if code in line} == {code}
    assert any(re.search(pattern, line) for line in lines), lines
    others = [line for line in lines if f" {code} " not in line]
    assert not others


@pytest.mark.parametrize(
    "settings",
    [
        {"caption.exclude": '["1girl", "solo", "virtual_youtuber"]'},  # like no tag: a list that recipes share
        {"caption.exclude": '["1GIRL", "Solo", "thing_1"]'},  # case and underscore do not count
        {"train.max_token_length": "225"},
        {"caption.shuffle_caption": "false", "caption.keep_tokens": "0"},  # nothing moves
        {"source[0].repeats": "5"},  # 15 samples from 2 pictures: not more than 8 each
        {"train.learning_rate": "1e-3", "network.alpha": "1"},  # 1e-3 * 1 / 2 = 5e-4, the limit itself
        {"train.learning_rate": "1e-3", "train.unet_lr": "1e-4"},
    ],
)
def test_check_stays_silent(fresh: Path, settings: dict[str, str]) -> None:
    assert check(settings) == (0, [])


def test_the_shipped_recipe_passes_the_check() -> None:
    done = lorac("check", RIHO)
    assert done.exit_code == 0, done.output
    assert done.stderr == "no findings\n"


def test_inspect_reads_what_the_safetensors_library_reads(reading: Path) -> None:
    from safetensors import safe_open

    path = reading / "build" / "recipe" / "recipe.safetensors"
    facts = json.loads(output("inspect", "--json", path))
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert facts["metadata"] == metadata
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    data = path.read_bytes()
    assert facts["model_hash"] == hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert facts["model_hash"] == metadata["sshs_model_hash"]
    assert facts["model_hash_stated"] is True
    assert facts["tensors"] == len(tensors)
    ups, downs = ([name for name in tensors if f"lora_{part}" in name] for part in ("up", "down"))
    assert sum(facts["modules"].values()) == len(ups) == len(downs) == 264
    assert facts["ranks"] == {"2": 264} == {str(tensors[downs[0]].shape[0]): 264}
    assert (
        facts["alphas"]
        == {"2": 264}
        == {f"{float(tensors['lora_te_text_model_encoder_layers_0_mlp_fc1.alpha']):g}": 264}
    )
    assert facts["dtypes"] == {"F16": len(tensors)}

    text = output("inspect", path)
    assert text.startswith("recipe.safetensors\n")
    assert "264" in text
    assert f"model hash  {facts['model_hash']} (as stated)" in text
    assert "modelspec.trigger_phrase = izumi riho" in text


def test_inspect_notices_a_file_that_was_changed(reading: Path, tmp_path: Path) -> None:
    data = bytearray((reading / "build/recipe/recipe.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(data)
    assert "(NOT as stated in the file)" in output("inspect", tmp_path / "changed.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\xff" * 100])
def test_inspect_refuses_other_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file.safetensors"
    if content is not None:
        path.write_bytes(content)
    (message,) = refused("inspect", path)
    assert "file.safetensors" in message


def test_check_names_pictures_that_a_build_cannot_open(fresh: Path) -> None:
    (fresh / "pictures" / "text.png").write_text("no picture", encoding="utf-8")
    status, lines = check({})
    assert status == 1
    assert any(line.startswith("pictures/text.png: L013 the picture is no PNG, JPEG") for line in lines), lines
