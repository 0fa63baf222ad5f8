#!/usr/bin/env bash
# What can be proven about GPU engines without a GPU, with the real libraries: `make gpu-gate`. Wants the Python index,
# 2.5 GB of disk in .venv-gpu, and 15 minutes; arguments name models for the compile gate. Nothing here needs a driver.
#
#   1 TensorRT-RTX compiles every tail (its compiler needs no GPU)
#   2 the tests of tests/gpu, those that need TensorRT-RTX included
#   3 everything that run_all.sh runs on a GPU machine, on a simulated one
#   4 the real ONNX Runtime for CUDA on a simulated runtime; needs gcc and CUDA's headers (CUDA_ROOT, else
#     /usr/local/cuda), and fetches 250 MB into the environment's folder
#   5 the real pycuda on a simulated driver; needs the same
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=$(command -v uv || echo .tools/bin/uv)
env=${ISTHMUS_GPU_ENV:-.venv-gpu}
cuda=${CUDA_ROOT:-/usr/local/cuda}

[ -x "$env/bin/python" ] || "$uv" venv --quiet "$env"
"$uv" pip install --quiet --python "$env" -e '.[edge,gateway,partition]' \
  'tensorrt-rtx==1.7.1.116' 'cuda-bindings>=13' pytest pytest-timeout hypothesis msgpack httpx trustme

echo "== the compile gate"
"$env/bin/python" -m tests.gpu.compile_gate "$@"

echo "== tests/gpu"
"$env/bin/python" -m pytest -q -rs -p no:cacheprovider tests/gpu

echo "== run_all.sh on a simulated machine"
PYTHON="$env/bin/python" ISTHMUS_GPU_SIMULATION=$PWD/tests/gpu/simulation/machine ISTHMUS_GPU_SITE=$env/run-all \
  ISTHMUS_GPU_WHEELS=$env/no-wheels ISTHMUS_GPU_SECONDS=900 tests/gpu/run_all.sh "$env/evidence"

echo "== real ONNX Runtime for CUDA on a simulated runtime"
if ! command -v gcc >/dev/null || [ ! -f "$cuda/include/cuda_runtime_api.h" ]; then
  echo "not run: needs gcc and $cuda/include/cuda_runtime_api.h"
else
  [ -d "$env/ort-cuda/onnxruntime" ] ||
    "$uv" pip install --quiet --python "$env" --no-deps --target "$env/ort-cuda" 'onnxruntime-gpu==1.31.1'
  CUDA_ROOT=$cuda "$env/bin/python" -m tests.gpu.ort_cuda_drill "$env/ort-cuda"
fi

echo "== real pycuda on a simulated driver"
if ! command -v gcc >/dev/null || [ ! -f "$cuda/include/cuda.h" ]; then
  echo "not run: needs gcc and $cuda/include/cuda.h"
  exit 0
fi
if ! "$env/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("pycuda") is None)'; then
  # pycuda reads how it is to be built from the home folder; the driver's library is only linked to, so an empty one does.
  home=$(mktemp -d)
  trap 'rm -rf "$home"' EXIT
  echo 'int isthmus_nothing;' | gcc -shared -fPIC -x c - -o "$home/libcuda.so" -Wl,-soname,libcuda.so.1
  printf 'CUDA_ENABLE_CURAND = False\nCUDA_ROOT = "%s"\nCUDA_INC_DIR = ["%s/include"]\nCUDADRV_LIB_DIR = ["%s"]\n' \
    "$cuda" "$cuda" "$home" >"$home/.aksetup-defaults.py"
  UV_CACHE_DIR=$("$uv" cache dir) HOME="$home" "$uv" pip install --quiet --python "$env" 'pycuda==2026.1'
fi
"$env/bin/python" -m tests.gpu.pycuda_drill
