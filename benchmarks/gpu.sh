#!/usr/bin/env bash
# All GPU tests and GPU benchmarks in one call, in under nine minutes, on a machine with one NVIDIA card.
#
#     bash benchmarks/gpu.sh [OUT [PART …]]          PYTHON=python3.12 by default python3
#
# It installs nothing and reaches for nothing outside. Torch must be there; what else is missing is taken from .wheels,
# which `bash benchmarks/wheels.sh` fills on a machine with a network. Each part has a time limit and may fail without
# stopping the next. Writes gpu.json into OUT, by default benchmarks/results: the device, driver, versions, and of each
# part its exit code, seconds and last lines; beside it, all that was said by parts that failed. The figures go to the
# usual files of benchmarks/results, under cases that end in "-cuda", and from there into a table of
# benchmarks/README.md; if OUT is another folder, copies of both go there. With PARTS, only those run. The exit code is 1
# if a part failed. Without a card it says so, writes gpu.json all the same, and ends with 0.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python="${PYTHON:-python3}"
carried="$(mktemp -d)"
trap 'rm -rf "$carried"' EXIT
"$python" - "$carried" <<'END'
import importlib.metadata, pathlib, sys, zipfile
for wheel in sorted(pathlib.Path(".wheels").glob("*.whl")):
    try:
        importlib.metadata.distribution(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        zipfile.ZipFile(wheel).extractall(sys.argv[1])
END
export PYTHONPATH="$PYTHONPATH:$carried"
# kernels/ is lorac.kernels once lorac is installed; where it is not, or from another folder, a link stands in for that.
here='import pathlib, lorac.kernels as k; raise SystemExit(not pathlib.Path(k.__file__).parent.samefile("kernels"))'
if [ ! -e lorac/kernels ] && ! "$python" -c "$here" 2>/dev/null; then
    ln -s ../kernels lorac/kernels && trap 'rm -rf lorac/kernels "$carried"' EXIT
fi
"$python" -m benchmarks.gpu "$@"
