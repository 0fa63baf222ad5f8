#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can prove, offline, in one call: `tests/gpu/run_all.sh [OUT]`
#
# Beforehand, where there is a network:  tests/gpu/carry.sh       (wheels for this machine's Python into .gpu-wheels)
# Then, on the machine with the GPU:     tests/gpu/run_all.sh out
#
# Python is $PYTHON, else python3; it needs pip. What is missing is written down as "not run", with the reason; a step that
# fails stops none of the others, and all of it ends within $ISTHMUS_GPU_SECONDS, 590 unless set: a step for which no time
# is left is "not run" as well. OUT holds summary.txt, a log a step and gpu.json, the raw figures.
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

left() { echo $((${ISTHMUS_GPU_SECONDS:-590} - SECONDS)); }

not_run() { echo "$1: not run, $2" | tee -a "$summary"; }

step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  [ "$(left)" -ge 10 ] || { not_run "$name" "no time was left"; return; }
  [ "$seconds" -le "$(left)" ] || seconds=$(left)
  local began=$SECONDS
  timeout -k 5 "$seconds" "$@" >"$out/$name.log" 2>&1
  local code=$? verdict
  case $code in
    0) verdict=passed ;;
    3) not_run "$name" "$(tail -n 1 "$out/$name.log" | cut -c -200)"; return ;;
    124 | 137) verdict="failed with $code, it was ended after $seconds s" ;;
    *) verdict="failed with $code" ;;
  esac
  echo "$name: $verdict in $((SECONDS - began)) s" | tee -a "$summary"
  tail -n 4 "$out/$name.log" | cut -c -300 | sed 's/^/    /' | tee -a "$summary"
}

{
  date -u +%FT%TZ
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "nvidia-smi is not here"
} | tee -a "$summary"

for digest in "$wheels"/*.whl.sha256; do # what was cut into parts on the way
  [ -f "$digest" ] || continue
  whole=${digest%.sha256}
  [ -f "$whole" ] || cat "$whole".part-* >"$whole" 2>/dev/null
  (cd "$wheels" && sha256sum --status -c "$(basename "$digest")" 2>/dev/null) && continue
  rm -f "$whole"
  echo "wheels: $(basename "$whole") is not whole, a part is missing or damaged" | tee -a "$summary"
done
if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl \
    >"$out/wheels.log" 2>&1 || echo "wheels: not all could be installed, see wheels.log" | tee -a "$summary"
fi
# what says which version we are, where the package itself is run from its sources
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)
mkdir -p "$site/isthmus-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: isthmus\nVersion: %s\n' "$version" >"$site/isthmus-$version.dist-info/METADATA"
export PYTHONPATH="$PWD:$site"

command -v "$python" >/dev/null || { not_run everything "there is no $python: name a Python in PYTHON"; exit 1; }
if ! lacking=$("$python" -c 'import numpy, msgspec, zmq, rich, onnx, pytest, hypothesis' 2>&1); then
  not_run everything "$python has no ${lacking##*No module named }: carry wheels here with tests/gpu/carry.sh, or name an environment in PYTHON"
  exit 1
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
  not_run pycuda "its source or nvcc is not here"
fi

step probe 60 "$python" -c 'import sys
from protocol.engines.driver import probe
found = probe()
print(found)
sys.exit(3 * isinstance(found, str))'
step engines 60 "$python" -c 'from protocol.engines.catalogue import KINDS
for kind in KINDS.values(): print(kind.name, "|", kind.absent() or "here")'
step tests 420 "$python" -m pytest -q -rs -p no:cacheprovider tests/gpu
if grep -q "^driver for CUDA" "$out/probe.log" 2>/dev/null; then
  step benchmark 420 "$python" -m benchmarks gpu --quick --json "$out/gpu.json"
else
  not_run benchmark "$(tail -n 1 "$out/probe.log" 2>/dev/null | cut -c -200)"
fi
"$python" -m pip list --path "$site" >"$out/versions.txt" 2>/dev/null || true
! grep -q ': failed with' "$summary"
