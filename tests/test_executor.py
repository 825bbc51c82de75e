"""What runs and what does not: one property a test, on kinds that take no time (see `fake_kinds`)."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lorac.digest import Value, digest, split
from lorac.engine import events
from lorac.engine.executor import Executor
from lorac.engine.keeper import Keeper
from lorac.engine.protocol import Failed, Item, Made, Work
from lorac.errors import InputError, Interrupted, LoracError, StoreError
from lorac.graph.nodes import Graph, Input, Node, Shape, Take
from lorac.store import blobs
from lorac.store.blobs import Store
from tests.fake_kinds import Bench, Fake, contents_of, evaluate, take, values, writing


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "store")
    made.world.folders = {"f": {f"{number}.png": b"picture %d" % number for number in range(5)}}
    yield made
    made.store.close()


def add(graph: Graph, kind: str, inputs: dict[str, Input] | None = None, recipe: str = "r", **params: Value) -> Node:
    return graph.add(Node(f"{recipe}:{kind}", kind, params, inputs or {}))


def source(graph: Graph, recipe: str = "r", folder: str = "f") -> Node:
    return graph.add(Node(f"{recipe}:source", "source", {}, hints={"path": folder}))


def pipeline(coarse: int = 0) -> Graph:
    """source → each → gpu → list → chain → one, as a real recipe has it."""
    graph = Graph()
    each = add(graph, "each", {"x": take(source(graph))}, coarse=coarse)
    gpu = add(graph, "gpu", {"x": take(each)})
    slices = add(graph, "list", {"x": take(each, Take.WHOLE, "b")})
    chain = add(graph, "chain", {"slice": take(slices), "latents": take(gpu, Take.WHOLE)})
    add(graph, "one", {"last": take(chain, Take.LAST), "all": take(chain, Take.WHOLE, "b")})
    return graph


def chain_of(count: int) -> Graph:
    graph = Graph()
    graph.add(Node("r:chain", "chain", {}, {}, tuple({"n": number} for number in range(count))))
    return graph


def assert_right(bench: Bench, graph: Graph, results: dict[Node, Any]) -> None:
    assert contents_of(results, bench.store) == evaluate(graph, bench.world, bench.kinds)[0]


def reopen(bench: Bench) -> None:
    """Another process."""
    bench.store.close()
    bench.store = Store(bench.store.root)


# -- hits, and what a change costs -----------------------------------------------------------------------------------


def test_everything_runs_once_and_then_never_again(bench: Bench) -> None:
    graph = pipeline()
    assert_right(bench, graph, bench.run(graph))
    links = bench.ran()["chain"]
    assert bench.ran() == {"each": 5, "gpu": 5, "list": 1, "chain": links, "one": 1}
    reopen(bench)
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran() == {}


def test_one_edited_item_is_one_item_and_a_reverted_one_is_none(bench: Bench) -> None:
    graph = pipeline()
    bench.run(graph)
    bench.world.folders["f"]["3.png"] = b"edited"
    assert_right(bench, graph, bench.run(graph))
    assert (bench.ran()["each"], bench.ran()["gpu"]) == (1, 1)
    bench.world.folders["f"]["3.png"] = b"picture 3"
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran() == {}


def test_added_removed_and_renamed_items_cost_what_is_new(bench: Bench) -> None:
    graph = pipeline()
    bench.run(graph)
    bench.world.folders["f"]["0a.png"] = b"added"
    bench.run(graph)
    assert (bench.ran()["each"], bench.ran()["gpu"]) == (1, 1)
    del bench.world.folders["f"]["0a.png"]
    bench.run(graph)
    assert bench.ran() == {}
    bench.world.folders["f"]["9.png"] = bench.world.folders["f"].pop("0.png")
    assert_right(bench, graph, bench.run(graph))
    assert "each" not in bench.ran()


def test_a_change_that_does_not_change_the_output_stops_there(bench: Bench) -> None:
    graph = pipeline(coarse=1)
    bench.run(graph)
    bench.world.folders["f"]["3.png"] = b"edited"
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran() == {"each": 1}


def test_a_longer_chain_goes_on_from_a_shorter_one(bench: Bench) -> None:
    for count, ran in [(2, 2), (5, 3), (3, 0), (5, 0)]:
        graph = chain_of(count)
        assert_right(bench, graph, bench.run(graph))
        assert bench.ran().get("chain", 0) == ran


def test_equal_nodes_of_two_recipes_run_once_and_both_know_them(bench: Bench) -> None:
    graph = Graph()
    for recipe in ("one", "two"):
        each = add(graph, "each", {"x": take(source(graph, recipe))}, recipe)
        add(graph, "gpu", {"x": take(each)}, recipe, salt=len(recipe))
        add(graph, "list", {"x": take(each, Take.WHOLE)}, recipe, salt=recipe)
    bench.run(graph)
    assert bench.ran() == {"each": 5, "gpu": 5, "list": 2}
    assert [node.kind for node in graph.of_recipe("two")] == ["source", "each", "gpu", "list"]
    for name in ("one:each", "two:each"):
        assert bench.store.ledger.last(name) is not None


@pytest.mark.parametrize(
    "other",
    [
        Node("r:x", "gpu", {"a": 1}),
        Node("r:x", "each", {"a": 2}),
        Node("r:x", "each", {"a": 1}, hints={"path": "x"}),
        Node("r:x", "each", {"a": 1}, items=({"n": 1},)),
    ],
)
def test_nodes_that_differ_in_anything_are_two(other: Node) -> None:
    graph = Graph()
    first = graph.add(Node("r:x", "each", {"a": 1}))
    assert graph.add(Node("s:x", "each", {"a": 1})) is first
    second = graph.add(other)
    assert second is not first
    assert graph.names == {first: ["r:x", "s:x"], second: ["r:x-2"]}  # a name is one node's
    inputs = [Input(first, "a"), Input(second, "a"), Input(first, "b"), Input(first, "a", Take.LAST)]
    for port in ("p", "q"):
        for source_ in inputs:
            graph.add(Node("r:y", "one", {}, {port: source_}))
    assert len(graph.nodes) == 2 + 8


# -- pools -----------------------------------------------------------------------------------------------------------


def test_cpu_items_run_at_the_same_time_and_gpu_items_never(bench: Bench) -> None:
    graph = Graph()
    bench.world.folders["f"] = {str(number): b"%d" % number for number in range(12)}
    add(graph, "each", {"x": take(source(graph))})
    for salt in range(3):
        add(graph, "gpu", {"x": take(source(graph))}, salt=salt)
    meeting = threading.Barrier(3, timeout=10)
    busy = threading.Lock()

    def alone(work: Work, item: Item) -> None:
        assert busy.acquire(blocking=False)
        time.sleep(0.001)
        busy.release()

    bench.kinds["each"].before = lambda work, item: (meeting.wait(), None)[1]
    bench.kinds["gpu"].before = alone
    bench.run(graph, jobs=3)
    assert bench.ran() == {"each": 12, "gpu": 36}


def test_the_gpu_finishes_the_first_recipe_before_it_begins_the_second(bench: Bench) -> None:
    graph = Graph()
    for recipe in ("first", "second"):
        items = tuple({"n": number} for number in range(3))
        chain = graph.add(Node(f"{recipe}:chain", "chain", {"of": recipe}, {}, items))
        graph.add(Node(f"{recipe}:gpu", "gpu", {"of": recipe}, {"x": take(chain)}))
    order = []

    def note(work: Work, item: Item) -> None:
        order.append((work.params["of"], item.index))

    bench.kinds["chain"].POOL = "gpu"
    bench.kinds["chain"].before = bench.kinds["gpu"].before = note
    bench.run(graph)
    assert order == [(recipe, index) for recipe in ("first", "second") for index in (0, 1, 2, 0, 1, 2)]


def test_what_waits_for_the_gpu_is_not_begun_after_an_error(bench: Bench) -> None:
    graph = Graph()
    add(graph, "gpu", {"x": take(source(graph))}, strict=True)
    for salt in range(3):
        add(graph, "gpu", {"x": take(source(graph))}, salt=salt)
    bench.world.folders["f"] |= {"1.png": b"!"}
    with pytest.raises(InputError):
        bench.run(graph)
    assert bench.ran() == {"gpu": 5}


# -- failures --------------------------------------------------------------------------------------------------------


def test_all_bad_items_are_named_at_once_and_the_good_ones_are_kept(bench: Bench) -> None:
    graph = Graph()
    each = add(graph, "each", {"x": take(source(graph))}, strict=True)
    add(graph, "gpu", {"x": take(each)})
    bench.world.folders["f"] |= {"1.png": b"!", "4.png": b"!!"}
    with pytest.raises(InputError) as error:
        bench.run(graph)
    assert [problem.where for problem in error.value.problems] == ["1.png", "4.png"]
    assert bench.ran() == {"each": 5}
    bench.world.folders["f"] |= {"1.png": b"good", "4.png": b"!!"}
    with pytest.raises(InputError) as error:
        bench.run(graph)
    assert [problem.where for problem in error.value.problems] == ["4.png"]
    assert bench.ran() == {"each": 2}
    del bench.world.folders["f"]["4.png"]
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran() == {"gpu": 4}


def test_items_with_equal_inputs_are_made_once_and_all_get_the_result(bench: Bench) -> None:
    graph = pipeline()
    bench.world.folders["f"] |= {"1.png": b"picture 3", "2.png": b"picture 3", "5.png": b"picture 0"}
    assert_right(bench, graph, bench.run(graph))
    assert (bench.ran()["each"], bench.ran()["gpu"]) == (3, 3)
    bench.world.folders["f"] |= {"0.png": b"new", "5.png": b"new"}
    assert_right(bench, graph, bench.run(graph))
    assert (bench.ran()["each"], bench.ran()["gpu"]) == (1, 1)


def test_of_equal_bad_items_all_are_named(bench: Bench) -> None:
    graph = Graph()
    add(graph, "each", {"x": take(source(graph))}, strict=True)
    bench.world.folders["f"] |= {"1.png": b"!", "3.png": b"!", "4.png": b"!"}
    with pytest.raises(InputError) as error:
        bench.run(graph)
    assert [problem.where for problem in error.value.problems] == ["1.png", "3.png", "4.png"]


def two_branches() -> Graph:
    """A branch that fails, and one with a chain that does not."""
    graph = Graph()
    bad = graph.add(Node("bad:each", "each", {"strict": True}, {"x": take(source(graph, "bad", "bad"))}))
    graph.add(Node("bad:one", "one", {}, {"x": take(bad, Take.WHOLE)}))
    good = graph.add(Node("good:each", "each", {}, {"x": take(source(graph, "good"))}))
    graph.add(Node("good:chain", "chain", {}, {"x": take(good)}))
    return graph


def test_after_a_failure_k_goes_on_with_what_does_not_depend_on_it(bench: Bench) -> None:
    bench.world.folders["bad"] = {"x.png": b"!"}
    with pytest.raises(InputError):
        bench.run(two_branches(), keep_going=True)
    assert bench.ran() == {"each": 6, "chain": 5}
    with pytest.raises(InputError):
        bench.run(two_branches())
    assert bench.ran() == {"each": 1}


def overview(*branches: str, optional: bool = True) -> tuple[Graph, Node]:
    """Branches that refuse a "!", and a node that can do without any of them."""
    graph = Graph()
    inputs = {}
    for name in branches:
        branch = graph.add(Node(f"{name}:each", "each", {"strict": True}, {"x": take(source(graph, name, name))}))
        inputs[f"x.{name}"] = Input(branch, "a", optional=optional)
    return graph, graph.add(Node("all:one", "one", {}, inputs))


def test_with_k_a_node_is_made_without_the_optional_inputs_that_failed(bench: Bench) -> None:
    bench.world.folders["bad"] = {"x.png": b"!"}
    graph, node = overview("bad", "f")
    executor = bench.executor(graph, keep_going=True)
    with pytest.raises(InputError):
        executor.run()
    alone, same = overview("f", optional=False)
    assert bench.run(alone)[same] == executor.results[node]
    assert bench.ran() == {}, "its key is that of a node without the port"

    bench.world.folders["bad"] = {"x.png": b"fine"}
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran() == {"each": 1, "one": 1}


@pytest.mark.parametrize(("keep_going", "good"), [(False, b"fine"), (True, b"!")], ids=["without -k", "nothing left"])
def test_a_node_that_could_be_an_overview_of_failures_is_not_made(bench: Bench, keep_going: bool, good: bytes) -> None:
    bench.world.folders |= {"bad": {"x.png": b"!"}, "good": {"y.png": good}}
    graph, _ = overview("good", "bad")
    with pytest.raises(InputError):
        bench.run(graph, keep_going=keep_going)
    assert bench.ran() == {"each": 2}


def test_an_input_that_is_not_optional_is_needed_with_k_too(bench: Bench) -> None:
    bench.world.folders["bad"] = {"x.png": b"!"}
    graph, _ = overview("bad", "f", optional=False)
    with pytest.raises(InputError):
        bench.run(graph, keep_going=True)
    assert bench.ran() == {"each": 6}


def test_without_k_a_chain_stops_at_its_next_link(bench: Bench) -> None:
    bench.world.folders["bad"] = {"x.png": b"!"}
    started, failed = threading.Event(), threading.Event()

    def first(work: Work, item: Item) -> None:
        started.set()
        assert failed.wait(10)

    bench.kinds["chain"].before = first
    strict = bench.kinds["each"]
    strict.before = lambda work, item: (work.params.get("strict") and started.wait(10), None)[1]
    executor = bench.executor(two_branches(), jobs=8)
    executor.listen = lambda event: failed.set() if isinstance(event, events.Failure) else None
    with pytest.raises(InputError):
        executor.run()
    assert bench.ran()["chain"] == 1
    bench.world.folders["bad"] = {"x.png": b"fine"}
    strict.before = bench.kinds["chain"].before = lambda work, item: None
    bench.run(two_branches())
    assert bench.ran()["chain"] == 4


class Boom(Exception):
    """A kind's bug."""


def test_a_bug_in_a_kind_keeps_its_traceback_and_what_was_made(bench: Bench) -> None:
    def explode(work: Work, item: Item) -> None:
        if item.name == "3.png":
            raise Boom("here")

    graph = pipeline()
    bench.kinds["gpu"].before = explode
    with pytest.raises(Boom, match="here") as error:
        bench.run(graph)
    assert "explode" in [entry.name for entry in error.traceback]
    bench.kinds["gpu"].before = lambda work, item: None
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran()["gpu"] == 2


@pytest.mark.parametrize("kind", ["each", "gpu", "list", "chain", "one"])
def test_a_kind_that_says_nothing_of_an_item_is_a_bug(bench: Bench, kind: str) -> None:
    run = Fake.run
    with (
        patch.object(Fake, "run", lambda self, work: iter(()) if self.NAME == kind else run(self, work)),
        pytest.raises(RuntimeError, match=f"the kind {kind} says nothing of its items"),
    ):
        bench.run(pipeline())


def test_an_error_that_the_user_can_mend_is_told_once_with_its_exit_code(bench: Bench) -> None:
    def refuse(work: Work, item: Item) -> None:
        raise StoreError("no")

    bench.kinds["gpu"].before = refuse
    with pytest.raises(StoreError, match="no"):
        bench.run(pipeline())
    assert [event.text for event in bench.events if isinstance(event, events.Failure)] == ["no"]


def test_a_disk_that_is_full_inside_a_kind_is_explained(bench: Bench) -> None:
    def full(work: Work, item: Item) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.kinds["chain"].before = full
    with pytest.raises(StoreError, match="free some space") as error:
        bench.run(pipeline())
    assert error.value.exit_code == 2
    bench.kinds["chain"].before = lambda work, item: None
    bench.run(pipeline())
    assert "gpu" not in bench.ran()


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupted(executor: Executor, after: int) -> None:
    """Run, and press Ctrl-C when `after` messages have come from workers."""
    real = executor._receive
    left = after

    def receive() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real()

    with patch.object(executor, "_receive", receive):
        executor.run()


@pytest.mark.parametrize("after", range(8))
def test_ctrl_c_keeps_all_that_was_finished(bench: Bench, after: int) -> None:
    graph = pipeline()
    executor = bench.executor(graph)
    try:
        interrupted(executor, after)
    except Interrupted as error:
        assert error.exit_code == 130
    finished = {name: set(kind.made) for name, kind in bench.kinds.items()}
    assert_right(bench, graph, bench.run(graph))
    for name in ("each", "gpu", "chain"):
        assert not finished[name] & set(bench.kinds[name].ran)


def test_ctrl_c_lets_the_item_in_work_save_itself(bench: Bench) -> None:
    """What training does: it keeps a snapshot when it is cancelled, and the next build finds it."""
    state = {"kept": b"", "found": b""}

    def train(work: Work, item: Item) -> None:
        kept = work.kept("snapshot")
        state["found"] = kept.read_bytes() if kept else b""
        if not kept:
            assert work.cancelled.wait(10)
            work.keep("snapshot", writing(b"step 7"))
            raise Interrupted("saved")

    graph = Graph()
    graph.add(Node("r:one", "one", {}))
    bench.kinds["one"].before = train
    with pytest.raises(Interrupted):
        interrupted(bench.executor(graph), 1)
    bench.run(graph)
    assert state["found"] == b"step 7"
    assert list((bench.store.root / "scratch").iterdir()) == []


def test_a_second_ctrl_c_does_not_wait(bench: Bench) -> None:
    graph = Graph()
    graph.add(Node("r:one", "one", {}))
    go_on = threading.Event()
    bench.kinds["one"].before = lambda work, item: (go_on.wait(10), None)[1]

    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        go_on.set()
        assert code == 130
        raise Left

    with (
        patch("lorac.engine.workers.wait", side_effect=KeyboardInterrupt),
        patch.object(os, "_exit", leave),
        pytest.raises(Left),
    ):
        interrupted(bench.executor(graph), 0)


def test_scratch_survives_failures_and_goes_when_the_item_is_made(bench: Bench) -> None:
    def fail(work: Work, item: Item) -> None:
        work.keep("snapshot", writing(b"x"))
        raise StoreError("later")

    graph = pipeline()
    bench.kinds["chain"].before = fail
    with pytest.raises(StoreError):
        bench.run(graph)
    assert len(list((bench.store.root / "scratch").iterdir())) == 1
    bench.kinds["chain"].before = lambda work, item: None
    bench.run(graph)
    assert list((bench.store.root / "scratch").iterdir()) == []


def test_scratch_of_links_that_a_killed_build_finished_goes_too(bench: Bench) -> None:
    """Killed after the last link was stored and before the node was concluded: no link runs again."""
    graph = pipeline()
    conclude = Keeper.conclude

    def killed(self: Keeper, kind: Any, *args: Any) -> Any:
        if kind.NAME == "chain":
            raise Boom
        return conclude(self, kind, *args)

    with patch.object(Keeper, "conclude", killed), pytest.raises(Boom):
        bench.run(graph)
    (bench.store.scratch(digest(b"another action"))).mkdir(parents=True)
    executor = bench.executor(graph)
    chain = next(node for node in graph.nodes if node.kind == "chain")
    with patch.object(Store, "drop_scratch", autospec=True, side_effect=Store.drop_scratch) as drop:
        executor.run()
    look = executor.nodes[chain].look
    assert look is not None
    assert executor.nodes[chain].ran == 0
    assert look.item_keys in [call.args[1] for call in drop.call_args_list]
    assert len(list((bench.store.root / "scratch").iterdir())) == 1


# -- lost and damaged bytes ------------------------------------------------------------------------------------------


def lose(bench: Bench, *values: bytes) -> None:
    """Another process, in whose store these blobs are no more."""
    with bench.store.ledger.transaction():
        for value in values:
            bench.store.ledger.drop_blob(value)
    for value in values:
        bench.store.file(value).unlink(missing_ok=True)
    reopen(bench)


def corrupt(bench: Bench, values: Iterable[bytes]) -> None:
    """The same with one bit flipped in each, which nobody sees without reading."""
    with bench.store.ledger.transaction():
        for value in values:
            data = bytearray(bench.store.read(value))
            data[0] ^= 1
            bench.store.ledger._db.execute("UPDATE blob SET data = ? WHERE digest = ?", (bytes(data), value))
    reopen(bench)


def column(bench: Bench, results: dict[Node, Any], kind: str, output: str = "a") -> tuple[bytes, list[bytes]]:
    """(digest of the column, digests of its items)."""
    value = next(result for node, result in results.items() if node.kind == kind).outputs[output]
    return value, split(bench.store.read(value))


def test_lost_bytes_that_nobody_needs_cost_nothing(bench: Bench) -> None:
    graph = pipeline()
    results = bench.run(graph)
    lose(bench, *column(bench, results, "each")[1])
    bench.run(graph)
    assert bench.ran() == {}


def test_a_lost_input_is_made_again_and_nothing_else(bench: Bench) -> None:
    graph = pipeline()
    results = bench.run(graph)
    lost = column(bench, results, "gpu")[1][2]
    lose(bench, lost)
    bench.kinds["chain"].VERSION = 2
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran()["gpu"] == 1
    assert "each" not in bench.ran()
    assert [event.node for event in bench.events if isinstance(event, events.Warned)] == ["r:gpu"]


def test_many_damaged_blobs_are_one_repair(bench: Bench) -> None:
    bench.world.folders["f"] = {str(number): b"%d" % number for number in range(40)}
    graph = pipeline()
    results = bench.run(graph)
    corrupt(bench, [*column(bench, results, "gpu")[1], *column(bench, results, "each")[1]])
    bench.kinds["chain"].VERSION = 2
    assert_right(bench, graph, bench.run(graph))
    assert (len(bench.kinds["gpu"].made), len(bench.kinds["each"].made)) == (40, 40)


@pytest.mark.parametrize("damage", [lose, lambda bench, value: corrupt(bench, [value])])
@pytest.mark.parametrize(
    ("kind", "reader"), [("source", "each"), ("each", "gpu"), ("gpu", "chain"), ("list", "chain"), ("chain", "one")]
)
@pytest.mark.parametrize("output", ["a", "b"])
def test_a_lost_column_is_made_again_without_its_items(
    bench: Bench, kind: str, reader: str, output: str, damage: Any
) -> None:
    graph = pipeline()
    results = bench.run(graph)
    damage(bench, column(bench, results, kind, output)[0])
    bench.kinds[reader].VERSION = 2
    executor = bench.executor(graph)
    bench.kinds[kind if kind in bench.kinds else "one"].ran.clear()
    executor.run()
    columns = {node: list(result.outputs.values()) for node, result in executor.results.items()}
    assert executor.ensure(columns) or executor.run()
    assert_right(bench, graph, executor.results)
    if kind in ("each", "gpu", "chain"):
        assert bench.kinds[kind].ran == []


def test_a_lost_name_of_a_source_is_put_back(bench: Bench) -> None:
    """Names are stored beside the columns that hold their digests; the columns are intact here."""
    graph = pipeline()
    add(graph, "one", {"names": take(source(graph), Take.WHOLE, "b")}, salt=1)
    results = bench.run(graph)
    lose(bench, column(bench, results, "source", "b")[1][2])
    bench.kinds["one"].VERSION = 2
    assert_right(bench, graph, bench.run(graph))


def test_a_chain_that_lost_its_own_state_goes_back_to_where_it_has_one(bench: Bench) -> None:
    results = bench.run(chain_of(4))
    states = column(bench, results, "chain")[1]
    lose(bench, states[1], states[2], column(bench, results, "chain")[0])
    bench.run(chain_of(5))
    assert bench.ran() == {"chain": 1}  # state 3 is still there
    with bench.store.ledger.transaction():
        bench.store.ledger.forget((), [states[3]])
    graph = chain_of(6)
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran() == {"chain": 4}  # 1, 2 and 3 again, because 3 needs 2 and 2 needs 1; 4 is known; 5 is new


def test_bytes_that_cannot_be_kept_blame_the_disk(bench: Bench) -> None:
    graph = pipeline()
    bench.run(graph)
    bench.kinds["chain"].VERSION = 2
    real = Store.missing
    lost = {column(bench, bench.run(pipeline()), "gpu")[1][0]}
    bench.kinds["chain"].VERSION = 3
    with (
        patch.object(Store, "missing", lambda self, values: real(self, values) | lost & set(values)),
        patch.object(Store, "damaged", lambda self, values: real(self, values) | lost & set(values)),
        pytest.raises(StoreError, match="disk failing"),
    ):
        bench.run(graph)


def test_what_comes_out_different_when_it_is_made_again_is_used_everywhere(bench: Bench) -> None:
    """A GPU may not give the same bits twice. Then nothing may be left that was made of the lost ones."""
    graph = Graph()
    gpu = add(graph, "gpu", {"x": take(source(graph))})
    slow = add(graph, "each", {"x": take(gpu)})
    add(graph, "one", {"x": take(gpu, Take.WHOLE), "y": take(slow, Take.WHOLE)})
    results = bench.run(graph)
    lose(bench, column(bench, results, "gpu")[1][0])
    bench.kinds["one"].VERSION = 2
    with patch("tests.fake_kinds.values", other_values):
        found = bench.run(graph)
        assert_right_for(bench, graph, found)
    assert bench.ran() == {"gpu": 1, "each": 1, "one": 1}


def other_values(code: tuple[str, int], *arguments: Any) -> list[dict[str, bytes]] | str:
    """What the kinds make, but for the gpu kind, which makes something else than the time before."""
    made = values(code, *arguments)
    if code[0] != "gpu" or isinstance(made, str):
        return made
    return [{output: b"other" + data for output, data in made[0].items()}]


def assert_right_for(bench: Bench, graph: Graph, results: dict[Node, Any]) -> None:
    """Every node's content follows from the content of its inputs as they are in this very result."""
    found = contents_of(results, bench.store)
    gpu, slow, one = (found[node] for node in graph.nodes[1:])
    assert [data.startswith(b"other") for data in gpu["a"]] == [True, False, False, False, False]
    for made, data in zip(gpu["a"], slow["a"], strict=True):
        assert values(("each", 1), {}, {}, {}, {}, {"x": made}, Shape.EACH)[0]["a"] == data  # type: ignore[index]
    expected = values(("one", 2), {}, {}, {}, {"x": gpu["a"], "y": slow["a"]}, {}, Shape.ONE)
    assert expected[0]["a"] == one["a"][0]  # type: ignore[index]


def test_what_a_kind_kept_in_memory_is_gone_after_a_repair(bench: Bench) -> None:
    """Training keeps the base and the latents between links; after a repair they may be others."""
    graph = pipeline()
    results = bench.run(graph)
    corrupt(bench, column(bench, results, "gpu")[1])
    bench.kinds["chain"].VERSION = 2
    bench.world.folders["f"]["5.png"] = b"so that there is more than one link"
    sessions: list[dict[str, Any]] = []
    run = Fake.run

    def remembering(self: Fake, work: Work) -> Iterable[Made | Failed]:
        if self.NAME == "chain":
            sessions.append(dict(work.session))
            work.session["seen"] = len(sessions)
        return run(self, work)

    with patch.object(Fake, "run", remembering):
        assert_right(bench, graph, bench.run(graph))
    assert sessions[:2] == [{}, {}]
    assert sessions[2:] == [{"seen": number} for number in range(2, len(sessions))]


def test_two_nodes_that_miss_the_same_bytes_at_the_same_time(bench: Bench) -> None:
    """Both set the same source back while the other is still at work, and both get what they need."""
    graph = Graph()
    first = source(graph)
    for salt in range(6):
        add(graph, "each", {"x": take(first)}, salt=salt)
    results = bench.run(graph)
    items = column(bench, results, "source")[1]
    corrupt(bench, items)
    bench.kinds["each"].VERSION = 2
    together = threading.Barrier(6)

    def meet(work: Work, item: Item) -> None:
        if item.index == 0 and not together.broken:
            try:
                together.wait(0.5)
            except threading.BrokenBarrierError:
                pass

    bench.kinds["each"].before = meet
    assert_right(bench, graph, bench.run(graph, jobs=8))


def test_a_late_piece_of_an_earlier_try_is_not_taken_for_the_new_one(bench: Bench) -> None:
    """The folder changes while a repair scans it; then item 0 is another picture, and an old piece sends item 0."""
    graph = Graph()
    add(graph, "each", {"x": take(source(graph))})
    results = bench.run(graph)
    corrupt(bench, column(bench, results, "source")[1][4:])
    bench.kinds["each"].VERSION = 2
    late, scanned = threading.Event(), threading.Event()
    scan = bench.world.scan
    scans = 0

    def scan_changed(*args: Any) -> Any:
        nonlocal scans
        scans += 1
        if scans == 2:
            del bench.world.folders["f"]["0.png"]
            scanned.set()
        return scan(*args)

    def slow(work: Work, item: Item) -> None:
        if item.name == "0.png":
            assert scanned.wait(10)
            late.wait(0.2)

    bench.kinds["each"].before = slow
    with patch.object(bench.world, "scan", scan_changed):
        results = bench.run(graph, jobs=5)
    assert_right(bench, graph, results)
    bench.kinds["each"].before = lambda work, item: None
    assert_right(bench, graph, bench.run(graph))
    assert bench.ran() == {}


def test_a_column_of_many_items_is_a_file(bench: Bench) -> None:
    with patch.object(blobs, "ROW_LIMIT", 100):
        graph = pipeline()
        results = bench.run(graph)
        value, _ = column(bench, results, "gpu")
        assert bench.store.file(value).exists()
        lose(bench, value)
        bench.kinds["chain"].VERSION = 2
        assert_right(bench, graph, bench.run(graph))
        assert "gpu" not in bench.ran()


def test_an_unknown_error_class_is_not_swallowed(bench: Bench) -> None:
    class Strange(LoracError):
        pass

    def fail(work: Work, item: Item) -> None:
        raise Strange("strange")

    bench.kinds["one"].before = fail
    with pytest.raises(Strange):
        bench.run(pipeline())
