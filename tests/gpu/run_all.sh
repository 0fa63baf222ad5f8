#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can prove, offline, in one call: `tests/gpu/run_all.sh [OUT]`
#
# Beforehand, where there is a network:  tests/gpu/carry.sh       (wheels for this machine's Python into .gpu-wheels)
# Then, on the machine with the GPU:     tests/gpu/run_all.sh out
#
# Python is $PYTHON, else python3; it needs numpy. What is missing is written down as "not run", with the reason; a step
# that fails stops none of the others. OUT holds summary.txt, a log a step and gpu.json, the raw figures.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "${1:-gpu-out}" && cd "${1:-gpu-out}" && pwd)
python=${PYTHON:-python3}
wheels=${ISTHMUS_GPU_WHEELS:-.gpu-wheels}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD"
summary="$out/summary.txt"
: >"$summary"

step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  local began=$SECONDS
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1
  local code=$?
  echo "$name: $([ $code = 0 ] && echo passed || echo "failed with $code") in $((SECONDS - began)) s" | tee -a "$summary"
  tail -n 4 "$out/$name.log" | sed 's/^/    /' | tee -a "$summary"
}

{ date -u +%FT%TZ; nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; } 2>&1 | tee -a "$summary"

if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl \
    >"$out/wheels.log" 2>&1 || echo "wheels: not all could be installed, see wheels.log" | tee -a "$summary"
  export PYTHONPATH="$PWD:$site"
fi
# pycuda has no wheels: it is built here, if its source was carried and CUDA's headers are there
source=$(compgen -G "$wheels/pycuda-*.tar.gz" | head -n 1)
if [ -n "$source" ] && command -v nvcc >/dev/null; then
  cuda=${CUDA_ROOT:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")}
  mkdir -p "$site/.home"
  printf 'CUDA_ENABLE_CURAND = False\nCUDA_ROOT = "%s"\n' "$cuda" >"$site/.home/.aksetup-defaults.py"
  HOME="$site/.home" step pycuda-build 420 "$python" -m pip install --no-index --no-deps --no-build-isolation \
    --target "$site" "$source"
else
  echo "pycuda: not run, its source or nvcc is not here" | tee -a "$summary"
fi

step probe 60 "$python" -c 'from protocol.engines.driver import probe; print(probe())'
step engines 60 "$python" -c 'from protocol.engines.catalogue import KINDS
for kind in KINDS.values(): print(kind.name, "|", kind.absent() or "here")'
step tests 420 "$python" -m pytest -q -rs -p no:cacheprovider tests/gpu
step benchmark 420 "$python" -m benchmarks gpu --quick --json "$out/gpu.json"
"$python" -m pip list --path "$site" >"$out/versions.txt" 2>/dev/null || true
! grep -q ': failed with' "$summary"
