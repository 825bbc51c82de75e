"""Checkpoints of SD1.5's size in every format that lorac reads: memory, time and equality, beside diffusers.

    pip install 'lorac[bench]'
    python -m benchmarks.checkpoint [--folder /a/disk/with/20/GB]

Random weights are written in each format, then read in a process of its own by

    lorac, take apart    what a build does once: open, check, write the three models as blobs
    lorac, load          open, and the three models in the file's precision
    diffusers            `from_single_file`, or `from_pretrained` for a folder, in the file's precision

"peak" is the largest resident set beyond the imported libraries; "own" the part of it that is not a mapping of the
file, which the system may take back at any time. diffusers keeps its defaults. Equality is of every tensor's bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import commit, environment, machine, table, versions, write_result

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
MODELS = ("unet", "vae", "text")
LIMIT = 1.3
"""Largest peak of lorac's, in sizes of the tensors that are used."""


@dataclass(frozen=True)
class Format:
    """One way to write a checkpoint."""

    name: str
    file: str
    precision: str


FORMATS = (
    Format("single file, fp32", "full fp32 模型.safetensors", "fp32"),
    Format("single file, fp16", "full fp16 模型.safetensors", "fp16"),
    Format("single file, bf16", "full bf16 模型.safetensors", "bf16"),
    Format(".ckpt with EMA, fp32", "full ema 模型.ckpt", "fp32"),
    Format(".ckpt with NAI's names, fp16", "nai 模型.ckpt", "fp16"),
    Format("diffusers folder, fp16", "folder fp16 模型", "fp16"),
    Format("diffusers folder, bf16", "folder bf16 模型", "bf16"),
)
READERS = ("lorac, take apart", "lorac, load", "diffusers")


# -- one process that reads one checkpoint -----------------------------------------------------------------------------


class Memory:
    """The resident set of this process while something runs: bytes beyond what there was before."""

    def __enter__(self) -> Memory:
        self._done = threading.Event()
        self._before = self._status()
        self.own = 0
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._done.set()
        self._watcher.join()
        self.peak = self._status()["VmHWM"] - self._before["VmRSS"]

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.own = max(self.own, self._status()["RssAnon"] - self._before["RssAnon"])

    @staticmethod
    def _status() -> dict[str, int]:
        lines = (line.split() for line in Path("/proc/self/status").read_text("ascii").splitlines())
        return {parts[0][:-1]: int(parts[1]) * 1024 for parts in lines if parts[-1] == "kB"}


def take_apart(path: Path, configs: Path, dtype: torch.dtype, scratch: Path) -> tuple[Memory, dict[str, str]]:
    """What the `weights` kind does."""
    from lorac.sd import checkpoint, formats, parts, safetensors

    with Memory() as memory:
        found, config = parts.open_base(path, str(path))
        checkpoint.check(found, config, str(path), str(path))
        for name in MODELS:
            safetensors.write(scratch / name, getattr(found, name), {})
    return memory, {name: fingerprint(formats.read(scratch / name, name)[0]) for name in MODELS}


def load(path: Path, configs: Path, dtype: torch.dtype, scratch: Path) -> tuple[Memory, dict[str, str]]:
    """The three models, as after `weights` a training process has them."""
    from lorac.sd import checkpoint, parts

    with Memory() as memory:
        found, config = parts.open_base(path, str(path))
        models: dict[str, torch.nn.Module] = {
            "unet": checkpoint.load_unet(found.unet, config.unet.heads, config.unet.groups, dtype=dtype),
            "vae": checkpoint.load_vae(found.vae, config.vae.groups, dtype=dtype),
            "text": checkpoint.load_text(found.text, config.text.heads, dtype=dtype),
        }
        for model in models.values():
            touch(model)
    return memory, {name: fingerprint(model.state_dict()) for name, model in models.items()}


def diffusers(path: Path, configs: Path, dtype: torch.dtype, scratch: Path) -> tuple[Memory, dict[str, str]]:
    """diffusers' pipeline, without a tokenizer."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel  # noqa: F401  imported before memory is measured

    left_out: dict[str, Any] = {"tokenizer": None, "safety_checker": None, "feature_extractor": None}
    with Memory() as memory:
        if path.is_dir():
            variant = "fp16" if dtype == torch.float16 else None
            pipe = StableDiffusionPipeline.from_pretrained(str(path), torch_dtype=dtype, variant=variant, **left_out)
        else:
            pipe = StableDiffusionPipeline.from_single_file(
                str(path), config=str(configs), torch_dtype=dtype, local_files_only=True, **left_out
            )
        models = {"unet": pipe.unet, "vae": pipe.vae, "text": pipe.text_encoder}
        for model in models.values():
            touch(model)
    return memory, {name: fingerprint(model.state_dict()) for name, model in models.items()}


def touch(model: torch.nn.Module) -> None:
    """Read all weights once, as computing with them would, so that mapped ones are in memory, too."""
    for parameter in model.parameters():
        parameter.detach().view(-1)[:: 4096 // parameter.element_size()].sum()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all names, types, shapes and bytes, in the order of the names that every format shares."""
    hasher = hashlib.sha256()
    named = {key.removeprefix("text_model."): tensor for key, tensor in state.items() if "position_ids" not in key}
    for key in sorted(named):
        tensor = named[key].detach().contiguous()
        hasher.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


CHILDREN: dict[str, Callable[[Path, Path, torch.dtype, Path], tuple[Memory, dict[str, str]]]] = dict(
    zip(READERS, (take_apart, load, diffusers), strict=True)
)


def child(reader: str, path: Path, configs: Path, precision: str) -> None:
    """In a process of its own: read, and print what it took."""
    import lorac.sd.checkpoint  # noqa: F401  the libraries are in the baseline

    if reader == "diffusers":
        import diffusers.pipelines.stable_diffusion  # noqa: F401
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        memory, prints = CHILDREN[reader](path, configs, DTYPES[precision], Path(scratch))
    print(json.dumps({"peak": memory.peak, "own": memory.own, "seconds": memory.seconds, "prints": prints}))


# -- the parent --------------------------------------------------------------------------------------------------------


def write(form: Format, base: Any, folder: Path) -> Path:
    """Write the base in one format."""
    from tests import fullsize

    path, dtype = folder / form.file, DTYPES[form.precision]
    if path.suffix == ".safetensors":
        fullsize.save_safetensors(base, path, dtype)
    elif path.name.startswith("nai"):
        fullsize.save_nai(base, path, dtype)
    elif path.suffix == ".ckpt":
        fullsize.save_ckpt(base, path, dtype)
    else:
        variant = "fp16" if form.precision == "fp16" else None
        fullsize.pipeline(base.to(dtype)).save_pretrained(path, variant=variant)
    return path


def expected(base: Any, precision: str) -> dict[str, str]:
    """The fingerprints of the models in a precision."""
    prints = {}
    for name in MODELS:
        state = getattr(base, name).state_dict()
        prints[name] = fingerprint({key: tensor.to(DTYPES[precision]) for key, tensor in state.items()})
    return prints


def measure(form: Format, path: Path, configs: Path, prints: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every reader on one checkpoint."""
    found = {}
    for reader in READERS:
        arguments = ["--child", reader, str(path), str(configs), form.precision]
        command = [sys.executable, "-m", "benchmarks.checkpoint", *arguments]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, encoding="utf-8")
        if done.returncode and reader == "diffusers":
            found[reader] = {"error": done.stderr.strip().splitlines()[-1][:200]}
            continue
        if done.returncode:
            sys.exit(f"{reader} on {form.name} gave {done.returncode}:\n{done.stderr[-3000:]}")
        facts = json.loads(done.stdout.splitlines()[-1])
        equal = facts.pop("prints") == prints
        found[reader] = {
            "peak_mib": facts["peak"] >> 20,
            "own_mib": facts["own"] >> 20,
            "seconds": round(facts["seconds"], 2),
            "equal": equal,
        }
        print(f"  {form.name}, {reader}: {found[reader]}", flush=True)
    return found


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written; by default the temporary one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        reader, path, configs, precision = options.child
        child(reader, Path(path), Path(configs), precision)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = compare(Path(folder))
    show(results)


def compare(folder: Path) -> dict[str, dict[str, Any]]:
    """All formats, one after the other; each is removed before the next is written."""
    from tests import fullsize

    base = fullsize.draw()
    configs = folder / "configs"
    fullsize.save_configs(base, configs)
    used = sum(p.numel() for name in MODELS for p in getattr(base, name).parameters())
    results = {}
    for form in FORMATS:
        prints = expected(base, form.precision)
        path = write(form, base, folder)
        tensors = used * DTYPES[form.precision].itemsize
        sizes = {"file_mib": size(path) >> 20, "tensors_mib": tensors >> 20}
        results[form.name] = {**sizes, "readers": measure(form, path, configs, prints)}
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return results


def show(results: Mapping[str, dict[str, Any]]) -> None:
    """Print a table and write the JSON."""
    rows = []
    for form, facts in results.items():
        for reader, took in facts["readers"].items():
            if "error" in took:
                rows.append([f"{form}: {reader}", f"{facts['file_mib']}", *["-"] * 4, "cannot read it"])
                continue
            times = took["peak_mib"] / facts["tensors_mib"]
            cells = [f"{facts['file_mib']}", f"{took['peak_mib']}", f"{times:.2f}", f"{took['own_mib']}"]
            rows.append([f"{form}: {reader}", *cells, f"{took['seconds']:.1f}", "yes" if took["equal"] else "NO"])
    print(table(["SD1.5's size", "file MiB", "peak MiB", "× used", "own MiB", "seconds", "equal"], rows))
    facts = {
        "benchmark": "checkpoint",
        "commit": commit(),
        "machine": machine(),
        "versions": versions(["torch", "safetensors", "diffusers", "transformers"]),
        "limit": LIMIT,
        "formats": results,
    }
    print(write_result("checkpoint", facts))


if __name__ == "__main__":
    main()
