"""The build as a person sees it: a moving line per node on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from lorac.engine import events
from lorac.engine.gang_progress import GangProgress
from lorac.engine.wording import clock, padded, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_SECONDS = 10.0
"""At most one plain progress line per node in this time."""
NAME_COLUMNS = 36
"""What most nodes' names fit into, so that the figures behind them stand below each other."""


class PlainConsole:
    """Lines that stay readable in a log file."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._first: dict[str, tuple[float, float]] = {}  # when the first progress was told, and how much was done
        self._spoken: dict[str, float] = {}
        self._gang: GangProgress | None = None

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.NodeStarted():
                self._spoken[event.node] = time.monotonic()
            case events.GangStarted():
                self._gang = GangProgress(event.nodes)
                self._print(f"{self._gang.name}: {', '.join(event.nodes)}")
            case events.NodeProgress() if self._gang and event.node in self._gang:
                self._gang.take(event)
                if time.monotonic() - self._gang.spoken >= QUIET_SECONDS:
                    self._print(f"{self._gang.name}: {self._gang.text()}")
            case events.NodeProgress():
                now = time.monotonic()
                since, before = self._first.setdefault(event.node, (now, event.done))
                if now - self._spoken.get(event.node, now) >= QUIET_SECONDS:
                    self._spoken[event.node] = now
                    self._print(f"{event.node}: {progress_text(event, event.done - before, now - since)}")
            case _:
                text = event_text(event)
                if text and isinstance(event, events.NodeFinished) and self._gang and event.node in self._gang:
                    text += f", {self._gang.rate():.1f} LoRA-steps/s in its {self._gang.name}"
                if text:
                    self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing to tidy up."""


class LiveConsole(PlainConsole):
    """The same lines, with a moving bar for what is running."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.NodeProgress():
                text = f"{event.node} {event.note}"
                if self._gang and event.node in self._gang:
                    self._gang.take(event)
                    text += f", {self._gang.name}: {self._gang.rate():.1f} LoRA-steps/s"
                if event.node not in self._tasks:
                    self._tasks[event.node] = self._live().add_task(text, total=event.total)
                self._live().update(self._tasks[event.node], completed=event.done, total=event.total, description=text)
            case events.NodeFinished() if event.node in self._tasks:
                self._live().remove_task(self._tasks.pop(event.node))
                super().__call__(event)
            case _:
                super().__call__(event)

    def _live(self) -> Progress:
        if self._bars is None:  # rich takes 0.1 s to import: only when something runs
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=Console(file=self.stream), transient=True)
            self._bars.start()
        return self._bars

    def _print(self, text: str) -> None:
        if self._bars is None:
            super()._print(text)
        else:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def console(stream: TextIO | None = None) -> PlainConsole:
    """The console that suits the stream (standard error if none is given)."""
    stream = stream or sys.stderr
    return LiveConsole(stream) if stream.isatty() else PlainConsole(stream)


def progress_text(event: events.NodeProgress, done: float, seconds: float) -> str:
    """`1200/2808 steps, 12.3/s, 2:11 left, loss 0.0312`, where `done` of them took `seconds`."""
    unit, _, rest = event.note.partition(", ")
    text = f"{event.done:g}/{event.total:g} {unit}"
    if done > 0 and seconds > 0:
        rate = done / seconds
        text += f", {rate:.1f}/s, {clock((event.total - event.done) / rate)} left"
    return f"{text}, {rest}" if rest else text


def event_text(event: events.Event) -> str | None:
    """One line for what deserves one."""
    match event:
        case events.NodeFinished() if event.ran:
            amount = f"{event.ran} of {event.total}" if event.total > 1 else "done"
            return f"{padded(event.node, NAME_COLUMNS)} {amount:>14} {event.seconds:8.1f} s{_measures(event)}"
        case events.Warned():
            return f"{event.node}: warning: {event.text}" if event.node else event.text
        case events.FileWritten():
            return f"{size(event.bytes):>10}  {event.path}" + ("" if event.changed else "  (unchanged)")
        case events.BuildFinished() if event.ok:
            return f"{event.ran} made, {event.hits} found, {event.seconds:.1f} s"
    return None  # a Failure is in the error that ends the build, where all of them are listed in order


def _measures(event: events.NodeFinished) -> str:
    steps, seconds = event.measures.get("steps"), event.measures.get("seconds")
    return f", {steps:.0f} steps, {steps / seconds:.1f} steps/s" if steps and seconds else ""
