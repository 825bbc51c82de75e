#!/usr/bin/env bash
# Gets what gpu.sh needs besides torch, for a machine without a network: wheels for Linux on x86-64 in .wheels.
#
#     bash benchmarks/wheels.sh [PACKAGE …]        VERSION=3.12 PIP="python3 -m pip"
#
# By default all packages below; gpu.sh uses those that its interpreter lacks, so it is enough to name these. Versions are
# those of constraints.txt, torch excepted. Carry the folder along with the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(accelerate annotated-doc anyio attrs certifi charset-normalizer click diffusers filelock fsspec ftfy h11 hf-xet
    httpcore httpx huggingface-hub hypothesis idna importlib-metadata iniconfig markdown-it-py mdurl msgspec numpy
    openai-clip packaging peft pillow pluggy psutil pygments pytest pyyaml regex requests rich safetensors shellingham
    sniffio sortedcontainers tokenizers tomli tqdm transformers typer typing-extensions urllib3 wcwidth xformers zipp)
tags=(--platform=manylinux{_2_28,_2_27,_2_24,_2_17,2014,1}_x86_64)
pip="${PIP:-python3 -m pip} --disable-pip-version-check"
constraints="$(mktemp)"
trap 'rm -f "$constraints"' EXIT
grep -v '^torch==' constraints.txt >"$constraints"
# One by one: pip would hold the needs of one against the versions of another.
for package in "${@:-${packages[@]}}"; do
    if [ "$package" = openai-clip ]; then # a source distribution, the same everywhere
        $pip wheel --quiet --no-deps --constraint "$constraints" --wheel-dir .wheels "$package"
    else
        $pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "${VERSION:-3.12}" \
            "${tags[@]}" --constraint "$constraints" --dest .wheels "$package"
    fi
done
du -sh .wheels
