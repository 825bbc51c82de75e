"""`--budget 8GiB`: text to bytes and back."""

from __future__ import annotations

import os
import re
import subprocess

from lorac.errors import InputError

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)


def parse(text: str, where: str = "--budget") -> int:
    """Bytes of `8GiB`, `7.5 GiB`, `6000MB`. Raises InputError for anything else."""
    match = _FORM.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or not (size := round(float(match[1]) * unit)):
        raise InputError.of(where, f'"{text}" is no amount of memory', "write it as 8GiB, 7.5GiB or 6000MB")
    return size


def shown(size: float) -> str:
    """`7.4 GiB`, `512 MiB`."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.0f} MiB"


def free_on_card() -> int | None:
    """Bytes that the NVIDIA card has free that torch takes, as its driver says; None where there is none.

    It is the first of CUDA_VISIBLE_DEVICES. Assumed is that CUDA numbers cards as the driver does, by their slots: it
    puts the quickest first unless CUDA_DEVICE_ORDER is PCI_BUS_ID. Parts of a card (MIG) count as none.
    """
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if card in ("", "-1"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={card}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return int(done.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
