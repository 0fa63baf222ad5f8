#!/usr/bin/env bash
# Gathers into .gpu-wheels what run_all.sh installs on a GPU machine that has no network: `tests/gpu/carry.sh [PYTHON-VERSION]`
#
# For Python 3.12 on x86-64 unless another version is named. TensorRT's own libraries lie on NVIDIA's index, not on the
# Python index: name it with NVIDIA_INDEX=https://pypi.nvidia.com, or they are left out and TensorRT is "not run" there.
set -uo pipefail
cd "$(dirname "$0")/../.."
version=${1:-3.12}
target=.gpu-wheels
mkdir -p "$target"
fetch() {
  local platforms=()
  for n in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${n}_x86_64"); done
  "${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$target" "$@" ||
    echo "not carried: $*"
}
# what the tests and the gateway stand on, each without its dependencies
for package in msgspec pyzmq isal backports.zstd rich typer structlog uvicorn httptools uvloop click h11 markdown-it-py \
  mdurl pygments shellingham typing-extensions annotated-doc cryptography cffi pycparser dnspython watchfiles anyio idna \
  starlette hypothesis sortedcontainers pytest pytest-timeout iniconfig pluggy packaging onnx onnx-ir onnxruntime-gpu \
  cuda-bindings cuda-pathfinder flatbuffers protobuf ml-dtypes scipy pillow; do fetch "$package"; done
fetch tensorrt-rtx-cu13-bindings==1.7.1.116
fetch tensorrt-rtx-cu13-libs==1.7.1.116
fetch tensorrt-rtx-cu13==1.7.1.116
fetch tensorrt-rtx==1.7.1.116
if [ -n "${NVIDIA_INDEX:-}" ]; then
  for package in tensorrt_cu13_libs tensorrt_cu13_bindings tensorrt_cu13 tensorrt; do
    fetch --extra-index-url "$NVIDIA_INDEX" "$package"
  done
else
  echo "not carried: TensorRT (name NVIDIA's index in NVIDIA_INDEX)"
fi
if ! compgen -G "$target/pycuda-*.tar.gz" >/dev/null; then
  # pip builds a source's metadata when it downloads it, which needs CUDA; uv's cache does not
  echo "not carried: pycuda (put pycuda-2026.1.tar.gz from the Python index into $target)"
fi
du -sh "$target"
