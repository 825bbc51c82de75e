"""The command line: parse, call, print. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from lorac.errors import InputError, Interrupted, LoracError, Problem, StoreError

if TYPE_CHECKING:
    from lorac.graph.nodes import Graph
    from lorac.recipe.load import Loaded
    from lorac.store.blobs import Store

EXIT_CODES = """
\b
Exit codes:
  0    done
  1    training diverged, or `lorac check` found something
  2    bad input: recipe, picture, caption, base or disk; all problems are listed
  130  interrupted; the next build goes on from there
"""


class Verbs(click.Group):
    """Shows our errors as text; everything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LoracError as error:
            for problem in error.problems if isinstance(error, InputError) else [error]:
                click.echo(f"lorac: {problem}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(Interrupted.exit_code)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            click.echo(f"lorac: {error.filename or 'the output'}: no space left on the disk; free some space", err=True)
            ctx.exit(StoreError.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one needs them."""
        return list(self.commands)


@click.group(cls=Verbs, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lorac")
def main() -> None:
    """lorac compiles a TOML recipe into a Stable Diffusion 1.x LoRA, and makes again only what changed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not stream.isatty():  # Windows: a pipe has an old code page
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


PATH = click.Path(path_type=Path)

recipe_argument = click.argument("recipes", nargs=-1, required=True, type=PATH, metavar="RECIPE...")
set_option = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set a recipe value, as in train.seed=7."
)
base_option = click.option(
    "--base", metavar="FILE", help='Base checkpoint instead of the recipe\'s, or "builtin:mini".'
)
store_option = click.option(
    "--store", type=PATH, envvar="LORAC_STORE", default=".lorac", help="Where built things are kept.", show_default=True
)


gang_option = click.option(
    "--no-gang", is_flag=True, help="Train the LoRAs of a build one after the other, not several in one pass."
)
budget_option = click.option(
    "--budget",
    metavar="SIZE",
    help="Memory that training may take, as in 8GiB. Absent: what a card has free; on a CPU, any.",
)


def recipe_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The recipes of a verb and what replaces their values."""
    return recipe_argument(set_option(base_option(verb)))


@contextmanager
def opened(folder: Path, *, to_look: bool = False) -> Iterator[Store]:
    """The store, closed at the end. Whoever opens it `to_look` sees an empty one where there is none yet."""
    from lorac.store.blobs import Store

    with TemporaryDirectory() if to_look and not folder.exists() else nullcontext(folder) as root:
        store = Store(Path(root))
        try:
            yield store
        finally:
            store.close()


def read(recipes: tuple[Path, ...], sets: tuple[str, ...], base: str | None) -> tuple[Loaded, Graph]:
    """The recipes and their graph. Raises InputError."""
    from lorac.graph.lower import lower
    from lorac.recipe.load import load_all

    loaded = load_all(recipes, sets, base)
    return loaded, lower(loaded.recipes, loaded.collections)


output_option = click.option("-o", "--output", type=PATH, help="Recipe to write. Absent: standard output.")
force_option = click.option("--force", is_flag=True, help="Replace a recipe that is there.")


@main.command(short_help="Write a first recipe for a folder of pictures.")
@click.argument("folder", type=PATH)
@output_option
@force_option
def init(folder: Path, output: Path | None, force: bool) -> None:
    """Look at the pictures in FOLDER and write a good first recipe for them."""
    from lorac.migrate.start import start
    from lorac.migrate.write import write

    write(start(folder, output), output, force)


@main.command("import", short_help="Make a recipe of what was made for kohya.")
@click.argument("path", type=PATH)
@click.option("--reg", type=PATH, metavar="FOLDER", help="kohya folder of regularisation pictures.")
@output_option
@force_option
def import_(path: Path, reg: Path | None, output: Path | None, force: bool) -> None:
    """Make a recipe of PATH: a kohya training folder (36_riho/…), a --config_file or --dataset_config (.toml), the
    popup's .json, or the metadata of a finished LoRA (.safetensors)."""
    from lorac.migrate.importing import import_path
    from lorac.migrate.write import write

    write(import_path(path, reg, output), output, force)


@main.command(short_help="Train and write what is not built yet.")
@recipe_options
@store_option
@click.option("-n", "--dry-run", is_flag=True, help="Say what would run; make nothing.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="CPU workers.", show_default="cores"
)
@click.option("-k", "--keep-going", is_flag=True, help="After a failure, go on with what does not depend on it.")
@gang_option
@click.option("--out", type=PATH, default="build", help="Folder of the outputs.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Write one event a line to standard output.")
@budget_option
def build(
    recipes: tuple[Path, ...],
    sets: tuple[str, ...],
    base: str | None,
    store: Path,
    dry_run: bool,
    jobs: int,
    keep_going: bool,
    no_gang: bool,
    out: Path,
    as_json: bool,
    budget: str | None,
) -> None:
    """Build each RECIPE: train what is not trained, write what is not written."""
    from lorac.engine import events
    from lorac.engine.build import build as run
    from lorac.engine.console import console
    from lorac.kinds.registry import KINDS, SCANNERS
    from lorac.train.deterministic import fixed_workspace

    loaded, graph = read(recipes, sets, base)
    if any(recipe.train.deterministic for recipe in loaded.recipes):
        fixed_workspace()
    names = loaded.names
    with opened(store, to_look=dry_run) as blobs:
        _hold_to(loaded, graph, blobs, budget)
        if dry_run:
            _show_forecast(names, graph, blobs, as_json)
            return
        lines = console()

        def listen(event: events.Event) -> None:
            if as_json:
                click.echo(events.as_json(event))
            else:
                lines(event)

        try:
            run(
                graph,
                names,
                KINDS,
                SCANNERS,
                blobs,
                out.absolute(),
                listen,
                jobs=jobs,
                keep_going=keep_going,
                gang=not no_gang,
            )
        finally:
            lines.close()


def _hold_to(loaded: Loaded, graph: Graph, store: Store, budget: str | None) -> None:
    """Refuse recipes that are to be trained and cannot be in `budget`, or in what a card has free; tell the training of
    the others."""
    import shutil

    from lorac.engine.forecast import Outlook, forecast
    from lorac.kinds.registry import KINDS, SCANNERS
    from lorac.train.memory.budget import free_on_card, parse

    given = None if budget is None else parse(budget)
    if given is None and shutil.which("nvidia-smi") is None:
        return
    casts = forecast(graph, KINDS, SCANNERS, store)
    trained = {node for node, cast in casts.items() if node.kind == "train" and cast.outlook is not Outlook.FOUND}
    if not trained:
        return
    from lorac.plan import run_of
    from lorac.plan_memory import UNPREDICTED, memory_run, refusals

    free = free_on_card()
    limit = free if given is None else given
    if limit is None:
        return
    problems: list[Problem] = []
    for recipe in loaded.recipes:
        if trained.isdisjoint(graph.of_recipe(recipe.name)):
            continue
        run = memory_run(recipe, run_of(recipe), cuda=free is not None)
        if run is not None:
            problems += refusals(recipe, run, limit)
        elif given is not None:
            click.echo(f"{recipe.name}: warning: memory is {UNPREDICTED}: nothing holds it to --budget", err=True)
    if problems:
        raise InputError(problems)
    if given is not None:
        graph.hint("train", {"budget": given})


def _show_forecast(names: list[str], graph: Graph, store: Store, as_json: bool) -> None:
    from lorac.engine import forecast
    from lorac.kinds.registry import KINDS, SCANNERS

    casts = forecast.forecast(graph, KINDS, SCANNERS, store)
    if as_json:
        for node, cast in casts.items():
            facts = {"node": node.name, "outlook": cast.outlook.value, "todo": cast.todo, "total": cast.total}
            click.echo(json.dumps(facts, ensure_ascii=False))
        return
    for line in forecast.listing(graph, names, casts):
        click.echo(line)


@main.command(short_help="Show pictures, steps, memory, files and the next build.")
@recipe_options
@store_option
@gang_option
@budget_option
def plan(
    recipes: tuple[Path, ...], sets: tuple[str, ...], base: str | None, store: Path, no_gang: bool, budget: str | None
) -> None:
    """Show the arithmetic of each RECIPE: pictures, repeats, steps, epochs, the memory that training takes, and what
    the next build would do: with several recipes, which are trained together. Exit code 2 if a build would be refused.
    """
    from lorac.engine.forecast import Outlook, forecast, summary
    from lorac.kinds.gang_size import Cut, available, cut
    from lorac.kinds.registry import KINDS, SCANNERS
    from lorac.plan import gang_line, gangs_to_make, laid_out, lines, run_of, total_lines
    from lorac.plan_memory import at_once, is_shared, memory_run, refusals, rows
    from lorac.plan_problems import picture_problems
    from lorac.train.memory.budget import free_on_card, parse

    free = free_on_card()
    limit = free if budget is None else parse(budget)
    loaded, graph = read(recipes, sets, base)
    runs = {recipe.name: run_of(recipe) for recipe in loaded.recipes}  # first: it names a folder by the recipe's line
    with opened(store, to_look=True) as blobs:
        casts = forecast(graph, KINDS, SCANNERS, blobs)
    memory = {each.name: memory_run(each, runs[each.name], cuda=free is not None) for each in loaded.recipes}
    to_make = {node for node, cast in casts.items() if cast.outlook is not Outlook.FOUND}
    problems = [problem for each in loaded.recipes for problem in picture_problems(each, runs[each.name])]
    for recipe in loaded.recipes:
        training = any(node.kind == "train" and node in to_make for node in graph.of_recipe(recipe.name))
        if limit is not None and training and (alone := memory[recipe.name]) is not None:
            problems += refusals(recipe, alone, limit)
    most, cuts = available() if limit is None else limit, []
    for gang in [] if no_gang else gangs_to_make(graph, to_make):
        mates = [run for name in gang.names if (run := memory[name]) is not None]
        cuts.append((gang, Cut([1], "") if gang.reason else cut(mates, most)))
        memory |= at_once(gang.names, cuts[-1][1], memory)
    for recipe in loaded.recipes:
        run = memory[recipe.name]
        peak = [("memory", 'that of the gang: see "trained together" below')] if is_shared(run) else rows(run, limit)
        own = [*lines(recipe, runs[recipe.name]), *laid_out(peak)]
        click.echo("\n".join([recipe.name, *own, *summary(graph, recipe.name, casts)]))
    for collection in loaded.collections:
        own = total_lines(collection, runs, graph)
        click.echo("\n".join([collection.name, *own, *summary(graph, collection.name, casts)]))
    for gang, sizes in cuts:
        click.echo(gang_line(gang, sizes))
        for run in {id(run): run for name in gang.names if is_shared(run := memory[name])}.values():
            click.echo("\n".join(laid_out(rows(run, limit))))
    if problems:
        raise InputError(list(dict.fromkeys(problems)))


@main.command(short_help="Explain what is made again, and why.")
@click.argument("target", metavar="RECIPE[:NODE]")
@set_option
@base_option
@store_option
def why(target: str, sets: tuple[str, ...], base: str | None, store: Path) -> None:
    """Explain what the next build will make and why; if nothing, what the last one made.

    NODE is a kind, such as `caption`, or a kind with its folder, such as `caption[riho_head]`.
    """
    from lorac.engine.forecast import forecast
    from lorac.engine.why import why as explain
    from lorac.kinds.registry import KINDS, SCANNERS

    file, colon, kind = target.rpartition(":")
    if not colon or Path(target).exists():  # a Windows drive has a colon too
        file, kind = target, ""
    loaded, graph = read((Path(file),), sets, base)
    labels = {name.partition(":")[2] for names in graph.names.values() for name in names}
    kinds = {node.kind for node in graph.nodes}
    if kind and kind not in kinds | labels:
        raise InputError([Problem(target, f'there is no node "{kind}"', f"choose one of {', '.join(sorted(kinds))}")])
    with opened(store, to_look=True) as blobs:
        forecasts = forecast(graph, KINDS, SCANNERS, blobs)
        for name in loaded.names:
            if kind and not any(kind in (node.kind, graph.label(node, name)) for node in graph.of_recipe(name)):
                continue
            for line in explain(graph, name, kind or None, forecasts, blobs):
                click.echo(line)


@main.command(short_help="Look for likely mistakes.")
@click.argument("recipes", nargs=-1, type=PATH, metavar="RECIPE...")
@set_option
@base_option
@click.option("--explain", metavar="RULE", help='Explain a rule, by code or name, or "all", instead of checking.')
@click.option("--list", "listed", is_flag=True, help="List the rules instead of checking.")
@click.option(
    "--format", "style", type=click.Choice(["text", "json", "markdown"]), default="text", help="markdown: of --list."
)
@click.pass_context
def check(
    ctx: click.Context,
    recipes: tuple[Path, ...],
    sets: tuple[str, ...],
    base: str | None,
    explain: str | None,
    listed: bool,
    style: str,
) -> None:
    """Look for likely mistakes in each RECIPE, its pictures and its captions; exit code 1 if there are any."""
    from lorac.check import explain as words
    from lorac.check.findings import findings, summary
    from lorac.recipe.load import load

    if style == "markdown" and not listed:
        raise click.UsageError("--format markdown goes only with --list.", ctx)
    if listed or explain is not None:
        told = {"text": words.listing, "json": words.as_json, "markdown": words.markdown}[style]
        click.echo(told() if explain is None else words.explained(explain), nl=style != "markdown")
        return
    if not recipes:
        raise click.UsageError("Missing argument 'RECIPE...'.", ctx)
    found = findings(load(recipes, sets, base), _show_reading if sys.stderr.isatty() else None)
    if style == "json":
        click.echo(json.dumps([finding.facts() for finding in found], indent=2, ensure_ascii=False))
    else:
        for finding in found:
            click.echo(str(finding))
        click.echo(summary(found), err=True)
    if found:
        ctx.exit(1)


def _show_reading(done: int, of: int) -> None:
    """A moving line while many pictures are read, wiped at the end."""
    if of >= 200 and (done % 20 == 0 or done == of):
        text = f"reading pictures: {done} of {of}"
        click.echo("\r" + (text if done < of else " " * len(text) + "\r"), err=True, nl=False)


@main.command(short_help="Print final captions and their tokens.")
@recipe_options
def captions(recipes: tuple[Path, ...], sets: tuple[str, ...], base: str | None) -> None:
    """Print the final captions of each RECIPE with their token counts, and what is cut off."""
    from lorac.dataset import caption_lines
    from lorac.recipe.load import load

    for recipe in load(recipes, sets, base):
        for line in caption_lines(recipe):
            click.echo(line)


@main.command(short_help="Write what the tagger sees to text files.")
@recipe_options
@store_option
@click.option("-n", "--dry-run", is_flag=True, help="Only print; write no text files.")
@click.option("--overwrite", is_flag=True, help="Tag every picture; replace the text files that are there.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="CPU workers.", show_default="cores"
)
def tag(
    recipes: tuple[Path, ...],
    sets: tuple[str, ...],
    base: str | None,
    store: Path,
    dry_run: bool,
    overwrite: bool,
    jobs: int,
) -> None:
    """Write the tags of each RECIPE's pictures to text files beside them, for editing.

    A picture that has a text file is left alone. Written is all that the tagger sees above the recipe's threshold:
    trigger words, exclude and replace stay in the recipe, and a build applies them to the text.
    """
    from lorac import tagging
    from lorac.engine.console import console
    from lorac.recipe.load import load

    lines = console()
    with opened(store) as blobs:
        try:
            found = tagging.folders(load(recipes, sets, base), blobs, lines, jobs=jobs, overwrite=overwrite)
        finally:
            lines.close()
    for line in tagging.lines(found, dry_run=dry_run):
        click.echo(line)


@main.command(short_help="Print the build graph.")
@recipe_options
@click.option("--format", "style", type=click.Choice(["dot", "mermaid", "json"]), default="dot", show_default=True)
def graph(recipes: tuple[Path, ...], sets: tuple[str, ...], base: str | None, style: str) -> None:
    """Print the build graph of each RECIPE: what they share is in it once."""
    from lorac.graph.draw import draw

    _, nodes = read(recipes, sets, base)
    click.echo(draw(nodes, style))


@main.command(short_help="Print what a .safetensors file holds.")
@click.argument("file", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def inspect(file: Path, as_json: bool) -> None:
    """Print what a .safetensors FILE holds: metadata, modules, ranks, hashes."""
    from lorac.inspect import facts, lines

    found = facts(file)
    click.echo(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) if as_json else "\n".join(lines(found)))


@main.command(short_help="Print the JSON Schema of recipes.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print all keys as a page for people.")
def schema(as_markdown: bool) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from lorac.recipe.jsonschema import json_schema
    from lorac.recipe.keys import markdown

    click.echo(markdown() if as_markdown else json.dumps(json_schema(), indent=2), nl=not as_markdown)


@main.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL; put it where the shell reads it."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "lorac", "_LORAC_COMPLETE").source())


if __name__ == "__main__":
    sys.exit(main())
