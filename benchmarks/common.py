"""What every benchmark needs: turns and medians, the machine and its rate, times of processes, a table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


@dataclass
class Series:
    """Times in seconds of one thing, measured in several rounds."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def facts(self) -> dict[str, Any]:
        return {"median": round(self.median, 4), "seconds": [round(value, 4) for value in self.seconds]}


WARM = {"full": 1, "mini": 3}
"""Turns before the measured ones; steps of the small base are recorded by then."""


class Contestant(Protocol):
    """Does step number `index`; `finish` returns when the work of all its steps is done."""

    def __call__(self, index: int, /) -> object: ...

    def finish(self) -> None: ...


def alternate(contestants: Mapping[str, Contestant], rounds: int, steps: int = 1, warm: int = 1) -> dict[str, Series]:
    """Seconds of a step of each, in turns: `rounds` times `steps` steps, after `warm` unmeasured turns of each."""
    series = {name: Series(name) for name in contestants}
    for done in range(warm + rounds):
        for name, step in contestants.items():
            started = time.perf_counter()
            for i in range(steps):
                step(done * steps + i)
            step.finish()
            if done >= warm:
                series[name].seconds.append((time.perf_counter() - started) / steps)
    return series


def times(series: Mapping[str, Series], slow: str, fast: str) -> float:
    """How many steps `fast` makes in the time of one of `slow`: the median over rounds of the ratio in a round, since
    a machine's speed drifts from minute to minute."""
    pairs = zip(series[slow].seconds, series[fast].seconds, strict=True)
    return statistics.median(one / other for one, other in pairs)


def processes(commands: Mapping[str, Sequence[str]], rounds: int) -> tuple[dict[str, Series], dict[str, int]]:
    """The same of processes of their own: (seconds of a step, most bytes of memory) of each, in turns.

    A command is a module of this folder and its arguments; it prints what `alone` returns, last.
    """
    series, peaks = {name: Series(name) for name in commands}, dict.fromkeys(commands, 0)
    for _ in range(rounds):
        for name, (module, *arguments) in commands.items():
            found = json.loads(
                output([sys.executable, "-m", f"benchmarks.{module}", *arguments], ROOT).splitlines()[-1]
            )
            series[name].seconds.append(found["seconds"])
            peaks[name] = max(peaks[name], found["peak_bytes"])
    return series, peaks


def alone(step: Contestant, steps: int, device: str = "cpu") -> dict[str, float]:
    """In such a process: the median of `steps` steps after two that warm up, and the most memory used."""
    series = alternate({"step": step}, steps, warm=2)["step"]
    return {"seconds": series.median, "peak_bytes": peak_bytes(device)}


def run(command: Sequence[str | Path], folder: Path, until: str | None = None, *, stop: bool = False) -> float:
    """Seconds from the start of a process to its end, or to the first line of its output that holds `until`.

    The process runs to its end all the same, unless `stop` kills it at that line. Raises SystemExit with its output
    when it fails or never says `until`.
    """
    seen: float | None = None
    lines = []
    started = time.perf_counter()
    with _started(command, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if seen is None and until is not None and until in line:
                seen = time.perf_counter() - started
                if stop:
                    process.kill()
    ended = time.perf_counter() - started
    killed = stop and seen is not None
    if (process.returncode != 0 and not killed) or (until is not None and seen is None):
        sys.exit(f"{' '.join(map(str, command))} gave {process.returncode}:\n{''.join(lines[-50:])}")
    return ended if seen is None else seen


def arrivals(command: Sequence[str | Path], folder: Path, words: str) -> tuple[float, list[float]]:
    """Seconds of a whole process, and when each line of its output that holds `words` came.

    Raises SystemExit with the end of its output when it fails.
    """
    lines, found = [], []
    started = time.perf_counter()
    with _started(command, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if words in line:
                found.append(time.perf_counter() - started)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))} gave {process.returncode}:\n{''.join(lines[-50:])}")
    return time.perf_counter() - started, found


def _started(command: Sequence[str | Path], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def output(command: Sequence[str | Path], folder: Path) -> str:
    """What a process prints. Raises SystemExit with its errors when it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment(), capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} gave {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def pin(count: int) -> None:
    """Keep this process and its children on the first `count` of its cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def peak_bytes(device: str = "cpu") -> int:
    """The most memory that this process has used: its resident set, or what torch has allocated on a GPU."""
    import torch

    from lorac.sd.device import Device

    return Device(device, torch.float32).peak_bytes()


def environment() -> dict[str, str]:
    """This process's, but with bytecode, as installed packages have it, and with output that comes at once."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return {**kept, **own}


def machine() -> dict[str, Any]:
    """What the figures depend on, without names."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


def card() -> dict[str, Any]:
    """What figures of a card depend on; empty where there is none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "bytes": facts.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _driver() -> str | None:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def versions(packages: Sequence[str], python: str = sys.executable) -> dict[str, str]:
    """Versions of packages as an interpreter has them installed; "-" of one that it has not."""
    code = (
        "import sys; from importlib.metadata import distributions; "
        "found = {d.name.lower(): d.version for d in distributions()}; "
        "print(*(found.get(name, '-') for name in sys.argv[1:]))"
    )
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, done.stdout.split(), strict=True))


def commit() -> str:
    """The commit that was measured; `+` when other files than results differ from it."""
    try:
        found, changed = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", ".", ":!benchmarks/results"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + ("+" if changed else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


def write_result(name: str, facts: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write `results/NAME.json`; returns its path."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def keep(name: str, case: str, facts: Mapping[str, Any], packages: Sequence[str]) -> Path:
    """Write one case's facts into `results/NAME.json`, with commit, machine and versions; other cases stay."""
    path = RESULTS / f"{name}.json"
    held = json.loads(path.read_text("utf-8")) if path.exists() else {}
    cases = {**held.get("cases", {}), case: {"commit": commit(), "machine": machine(), "versions": versions(packages)}}
    if case.endswith("-cuda"):
        cases[case]["card"] = card()
    cases[case] |= facts
    print(f"written to {write_result(name, {'benchmark': name, 'cases': dict(sorted(cases.items()))})}", flush=True)
    return path
