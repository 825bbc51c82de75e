"""Nodes that are made in one go: who goes together, and that nobody notices (see `fake_kinds`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from lorac.digest import Value
from lorac.engine import events
from lorac.engine.protocol import Failed, Item, Made, Next, Work
from lorac.errors import Interrupted, TrainingDiverged
from lorac.graph.gang import gangs
from lorac.graph.nodes import Graph, Input, Node, Shape, Take
from lorac.store.blobs import Store
from tests.fake_kinds import Bench, Fake, contents_of, evaluate, take
from tests.test_executor import corrupt


class Gang(Fake):
    """A chain that can be made with others, link by link in turn; `crews` are the gangs that there were."""

    def __init__(self) -> None:
        super().__init__(Shape.CHAIN, "gpu", "chain")
        self.crews: list[int] = []
        self.limit = 8

    def gang_group(self, node: Node) -> Hashable | None:
        return None if node.params.get("alone") else "chain"

    def gang_key(self, work: Work) -> Hashable:
        return work.params.get("base")

    def gang_limit(self, works: Sequence[Work]) -> int:
        return self.limit

    def run_gang(self, works: Sequence[Work], more: Next) -> Iterator[tuple[int, Made | Failed | BaseException]]:
        self.crews.append(len(works))
        running = dict(enumerate(works))
        while running:
            for number, work in list(running.items()):
                try:
                    (made,) = self.run(work)
                except TrainingDiverged as error:
                    del running[number]
                    yield number, error
                else:
                    yield number, made
            numbers = list(running)
            running = {n: work for n, work in zip(numbers, more(numbers), strict=True) if work is not None}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "store")
    made.world.folders = {"f": {f"{number}.png": b"picture %d" % number for number in range(5)}}
    made.kinds["chain"] = Gang()
    yield made
    made.store.close()


def gang(bench: Bench) -> Gang:
    kind = bench.kinds["chain"]
    assert isinstance(kind, Gang)
    return kind


def chain(graph: Graph, name: str, links: int, inputs: dict[str, Input] | None = None, **params: bool | str) -> Node:
    items: tuple[Mapping[str, Value], ...] = tuple({"name": name, "n": number} for number in range(links))
    return graph.add(Node(f"{name}:chain", "chain", params, inputs or {}, items))


def folder(graph: Graph) -> Node:
    return graph.add(Node("s", "source", {}, hints={"path": "f"}))


def chains(**links: int) -> Graph:
    graph = Graph()
    for name, count in links.items():
        graph.add(Node(f"{name}:one", "one", {}, {"x": take(chain(graph, name, count), Take.WHOLE)}))
    return graph


def assert_right(bench: Bench, graph: Graph) -> None:
    assert contents_of(bench.run(graph), bench.store) == evaluate(graph, bench.world, bench.kinds)[0]


def alone(bench: Bench, graph: Graph) -> None:
    """The same build without gangs."""
    bench.executor(graph, gang=False).run()


def when(name: str, link: int, action: Callable[[], None]) -> Callable[[Work, Item], None]:
    def before(work: Work, item: Item) -> None:
        if item.params == {"name": name, "n": link}:
            action()

    return before


def test_chains_of_any_length_run_together_and_keep_their_keys(bench: Bench) -> None:
    graph = chains(a=3, b=1, c=5)
    assert_right(bench, graph)
    assert gang(bench).crews == [3] and bench.ran() == {"chain": 9, "one": 3}
    gang(bench).crews.clear()
    alone(bench, graph)
    assert gang(bench).crews == [] and len(gang(bench).ran) == 9, "everything is found"


def test_what_was_made_alone_is_found_by_a_gang(bench: Bench) -> None:
    alone(bench, chains(a=3, b=1, c=5))
    assert_right(bench, chains(a=5, b=1, c=6))
    assert gang(bench).crews == [2] and bench.ran() == {"chain": 3, "one": 2}


def test_a_gang_waits_for_those_whose_inputs_are_still_made(bench: Bench) -> None:
    graph = Graph()
    for name in "ab":
        each = graph.add(Node(f"{name}:gpu", "gpu", {"of": name}, {"x": take(folder(graph))}))
        for number in range(3):
            chain(graph, f"{name}{number}", 2, {"x": take(each, Take.WHOLE)})
    assert_right(bench, graph)
    assert gang(bench).crews == [6]


def test_who_cannot_go_together_does_not(bench: Bench) -> None:
    graph = Graph()
    for number in range(5):
        chain(graph, f"r{number}", 2, base="large" if number % 2 else "small")
    chain(graph, "own", 2, alone=True)
    assert_right(bench, graph)
    assert sorted(gang(bench).crews) == [2, 3]


def test_a_chain_that_needs_another_comes_after_it(bench: Bench) -> None:
    graph = Graph()
    first, other = chain(graph, "a", 2), chain(graph, "b", 2)
    later = chain(graph, "c", 2, {"x": take(first, Take.LAST)})
    found = gangs(graph, gang(bench).gang_group)
    assert found == {first: [first, other], other: [first, other], later: [later]}
    assert_right(bench, graph)
    assert gang(bench).crews == [2]


@pytest.mark.parametrize(("limit", "crews"), [(8, [5]), (4, [3, 2]), (2, [2, 2]), (1, [])])
def test_a_large_set_is_cut_into_gangs_of_like_sizes(bench: Bench, limit: int, crews: list[int]) -> None:
    gang(bench).limit = limit
    assert_right(bench, chains(a=1, b=2, c=1, d=1, e=1))
    assert gang(bench).crews == crews


def twins(**links: int) -> Graph:
    """Chains, of which "longer" begins as "short" does."""
    graph = chains(**links)
    items: tuple[Mapping[str, Value], ...] = tuple({"name": "short", "n": number} for number in range(4))
    graph.add(Node("longer:chain", "chain", {}, {}, items))
    return graph


@pytest.mark.parametrize(("limit", "crews"), [(8, [3]), (2, [2, 2])])
def test_a_chain_that_begins_as_another_finds_what_that_one_made(bench: Bench, limit: int, crews: list[int]) -> None:
    gang(bench).limit = limit
    assert_right(bench, twins(short=2, q=2, r=2))
    assert gang(bench).crews == crews and bench.ran()["chain"] == 8, "the first two links of six and four are the same"


def test_without_gangs_too_equal_links_are_made_once(bench: Bench) -> None:
    alone(bench, twins(short=2, q=1))
    assert gang(bench).crews == [] and len(gang(bench).ran) == 5


def test_a_chain_finds_all_that_another_made(bench: Bench) -> None:
    graph = twins(q=2, short=5)
    assert_right(bench, graph)
    assert bench.ran()["chain"] == 7
    told = [event for event in bench.events if isinstance(event, events.NodeFinished) and event.kind == "chain"]
    assert {event.node: event.ran for event in told} == {"q:chain": 2, "short:chain": 5, "longer:chain": 0}


def test_who_fails_or_is_skipped_keeps_no_session(bench: Bench) -> None:
    """Nor does the error that is kept: a training's session and frames hold its base."""

    class Base:
        pass

    held: list[weakref.ref[Base]] = []
    alive: list[list[bool]] = []

    def before(work: Work, item: Item) -> None:
        alive.append([reference() is not None for reference in held])
        work.session["base"] = base = Base()
        held.append(weakref.ref(base))
        if item.params["name"] == "b":
            try:
                raise OSError("a disk")
            except OSError as error:
                raise TrainingDiverged("the loss is nan") from error

    gang(bench).before = before
    executor = bench.executor(chains(a=1, b=2, c=1), keep_going=True, gang=False)
    with pytest.raises(TrainingDiverged):
        executor.run()
    assert len(held) == 3 and not any(reference() for reference in held)
    assert alive[2][1] is False, "gone before the next begins"


def diverge() -> None:
    raise TrainingDiverged("the loss is nan")


def test_one_that_fails_leaves_the_others_unharmed(bench: Bench) -> None:
    graph = chains(a=3, b=3, c=3)
    gang(bench).before = when("b", 1, diverge)
    with pytest.raises(TrainingDiverged):
        bench.run(graph, keep_going=True)
    assert bench.ran() == {"chain": 7, "one": 2}
    gang(bench).before = lambda work, item: None
    assert_right(bench, graph)
    assert bench.ran() == {"chain": 2, "one": 1}


def test_without_keep_going_the_others_end_the_link_they_are_at(bench: Bench) -> None:
    gang(bench).before = when("b", 1, diverge)
    with pytest.raises(TrainingDiverged):
        bench.run(chains(a=3, b=3, c=3))
    assert bench.ran() == {"chain": 5}


def test_what_stops_the_gang_stops_every_member_and_loses_nothing_stored(bench: Bench) -> None:
    def stop() -> None:
        raise RuntimeError("a bug")

    graph = chains(a=2, b=2)
    gang(bench).before = when("b", 1, stop)
    with pytest.raises(RuntimeError, match="a bug"):
        bench.run(graph)
    gang(bench).before = lambda work, item: None
    bench.store.close()
    bench.store = Store(bench.store.root)
    assert_right(bench, graph)
    assert bench.ran() == {"chain": 1, "one": 2}


def test_ctrl_c_ends_a_gang_that_waits_for_its_next_links(bench: Bench) -> None:
    graph = chains(a=2, b=2)
    gang(bench).before = lambda work, item: work.progress(0, 1, "links")
    executor = bench.executor(graph)

    def interrupt(event: events.Event) -> None:
        if isinstance(event, events.NodeProgress):
            raise KeyboardInterrupt

    executor.listen = interrupt
    with pytest.raises(Interrupted):
        executor.run()
    first = len(gang(bench).ran)
    assert 1 <= first <= 2
    assert_right(bench, graph)
    assert bench.ran()["chain"] == 4 - first


def test_lost_bytes_are_made_again_in_a_gang(bench: Bench) -> None:
    graph = Graph()
    each = graph.add(Node("gpu", "gpu", {}, {"x": take(folder(graph))}))
    for name in "abc":
        chain(graph, name, 2, {"x": take(each, Take.WHOLE)})
    results = bench.run(graph)
    corrupt(bench, results[each].column("a", bench.store)[:2])
    gang(bench).VERSION = 2
    gang(bench).crews.clear()
    assert_right(bench, graph)
    assert gang(bench).crews == [3, 3] and bench.ran() == {"chain": 6, "gpu": 2}
