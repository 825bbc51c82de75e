"""A kind whose code changes must get a new VERSION, or a written reason why its bytes stay the same.

`tests/kind_versions.json` records, for each kind, its VERSION and the digest of the code that makes its bytes.
Comments, docstrings and formatting do not count. After a change that can alter the output: raise VERSION in the
kind's module. After one that cannot: write why under "waiver". Then run `python -m tests.test_kind_versions` to record
the new digest.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

from lorac.kinds.registry import KINDS, SCANNERS

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).with_name("kind_versions.json")

LORA = ["sd/lora.py", "sd/lora_forms.py", "sd/lora_names.py", "sd/lora_settings.py", "sd/lora_stack.py"]
MODEL = [*LORA, "sd/unet.py", "sd/blocks.py", "sd/layers.py", "sd/clip.py", "sd/noise.py"]
TRAIN = ["attention", "fused", "fused_resnet", "fused_text", "fused_unet", "gradients", "loop", "loss_scale", "norms"]
BASES = ["checkpoint", "config", "families", "formats", "layout", "names", "parts", "safetensors"]
SCHEDULE = ["schedule", "slices", "lr"]
SOURCES = {
    "source": ["kinds/source.py", "listing.py"],
    "start": ["kinds/start.py", "sd/safetensors.py", *LORA],
    "base": ["kinds/base.py", "sd/layout.py"],
    "weights": ["kinds/weights.py", "kinds/base.py", *(f"sd/{name}.py" for name in BASES)],
    "image": ["kinds/image.py", "recipe/buckets.py"],
    "tagger": ["kinds/tagger.py"],
    "vocabulary": ["kinds/vocabulary.py", "kinds/tagger.py"],
    "tag": ["kinds/tag.py", "kinds/image.py", "tagger/model.py", "tagger/pixels.py", "tagger/vocabulary.py"],
    "caption": ["kinds/caption.py", "captions.py", "tagger/vocabulary.py"],
    "tokens": ["kinds/tokens.py", "sd/tokenizer.py", "captions.py"],
    "latent": ["kinds/latent.py", "sd/vae.py", "sd/blocks.py", "sd/safetensors.py"],
    "schedule": ["kinds/schedule.py", "recipe/arithmetic.py", "rng.py", *(f"train/{name}.py" for name in SCHEDULE)],
    "train": [
        "kinds/train.py",
        "kinds/start.py",
        *(f"train/{name}.py" for name in (*TRAIN, "helper", "optimiser", "step")),
        *MODEL,
        "../kernels/geglu.py",
        "sd/safetensors.py",
        "rng.py",
    ],
    "export": ["kinds/export.py", "export.py", "metadata.py", "sd/safetensors.py"],
    "sample": [
        "kinds/sample.py",
        *MODEL,
        "../kernels/geglu.py",
        "sd/sampler.py",
        "sd/vae.py",
        "sd/tokenizer.py",
        "rng.py",
    ],
    "report": ["kinds/report.py", "report"],
}


def code_digest(kind: str) -> str:
    """The digest of a kind's code without comments, docstrings and formatting."""
    hasher = hashlib.sha256()
    for name in SOURCES[kind]:
        path = ROOT / "lorac" / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = ast.parse(file.read_text("utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list):
                    node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
            hasher.update(ast.dump(tree).encode())
    return hasher.hexdigest()[:16]


def current() -> dict[str, dict[str, object]]:
    return {
        name: {"version": module.VERSION, "code": code_digest(name)} for name, module in {**KINDS, **SCANNERS}.items()
    }


def test_every_kind_is_recorded_and_no_code_changed_in_silence() -> None:
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert recorded.keys() == current().keys()
    for name, now in current().items():
        then = recorded[name]
        if now["code"] == then["code"]:
            assert now["version"] == then["version"], f"{name}: VERSION changed; {__doc__}"
        else:
            raise AssertionError(f"the code of the kind {name} changed; {__doc__}")


def test_every_file_that_a_kind_imports_is_listed() -> None:
    """A module that a kind's listed sources import at their top, from the packages that make bytes, is listed too."""
    for name, sources in SOURCES.items():
        listed = {source.removesuffix(".py") for source in sources}
        for source in sources:
            path = ROOT / "lorac" / source
            if path.is_dir():
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lorac.sd."):
                    wanted = node.module.removeprefix("lorac.").replace(".", "/")
                    assert wanted in listed | EXEMPT.get(name, set()), f"{name}: {source} imports {node.module}"


EXEMPT = {
    "weights": {"sd/clip", "sd/unet", "sd/vae"},  # it only renames tensors
    "latent": {"sd/device"},
    "train": {"sd/device", "sd/tokenizer", "sd/vae"},  # of the VAE only the constant SCALE
    "sample": {"sd/device"},
}


if __name__ == "__main__":
    waivers = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    record = {
        name: {**now, **{k: v for k, v in waivers.get(name, {}).items() if k == "waiver"}}
        for name, now in current().items()
    }
    RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
