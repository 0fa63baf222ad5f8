#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can prove, offline, in one call: `tests/gpu/run_all.sh [OUT [STEP...]]`
#
# Beforehand, where there is a network:  tests/gpu/carry.sh       (wheels for this machine's Python into .gpu-wheels)
# Then, on the machine with the GPU:     tests/gpu/run_all.sh out
#
# OUT holds evidence.md and evidence.json, for docs/gpu-evidence.md, and log.txt, what each step said. They are written
# after every step: what was run stays, whoever ends this. Python is $PYTHON, else python3, 3.11 or newer. What is missing
# is "not run", with the reason; a step that fails or hangs stops none of the others. All of it ends within
# $ISTHMUS_GPU_SECONDS, 580 unless set, and a step for which no time is left is "not run" as well: call again with the
# names of such steps. The steps stand at the end, what there is most to learn of first.
#
# Wheels are unpacked into $ISTHMUS_GPU_SITE (.gpu-site: up to 5 GiB), once. ISTHMUS_GPU_SIMULATION names a folder that
# Python looks into first: with tests/gpu/simulation/machine every line here runs where there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "${1:-gpu-out}" && cd "${1:-gpu-out}" && pwd) || exit 1
shift
chosen=" $* "
python=${PYTHON:-python3}
wheels=${ISTHMUS_GPU_WHEELS:-.gpu-wheels}
mkdir -p "${ISTHMUS_GPU_SITE:-.gpu-site}" && site=$(cd "${ISTHMUS_GPU_SITE:-.gpu-site}" && pwd) || exit 1
work=$site/.work
rm -rf "$work" && mkdir -p "$work"
: >"$work/steps.tsv"
: >"$out/log.txt"
export PYTHONUNBUFFERED=1 PYTHONPYCACHEPREFIX="$site/.pycache" PYTHONPATH="$PWD"
unset PYTHONDONTWRITEBYTECODE # what one step has compiled the next one reads
if [ "$(df -Pm "${TMPDIR:-/tmp}" | awk 'END { print $4 }')" -lt 1024 ]; then # a bundle, plans, a wheel being unpacked
  mkdir -p "$work/tmp" && export TMPDIR="$work/tmp"
fi

left() { echo $((${ISTHMUS_GPU_SECONDS:-580} - SECONDS)); }
wanted() { [ "$chosen" = "  " ] || [[ "$chosen" == *" $1 "* ]]; }
said_last() { tail -c +$(($1 + 1)) "$out/log.txt" | grep -v '^$' | tail -n "$2" | cut -c -300; }

verdict() { # NAME VERDICT [SECONDS [COMMAND]]
  local words=${4:-}
  words=${words//"$work/"/}
  words=${words/#"$python "/python }
  printf '%s\t%s\t%s\t%s\n' "$1" "${2//$'\t'/ }" "${3:-0}" "${words//$'\n'/; }" | tr -d '\r' >>"$work/steps.tsv"
  echo "$1: $2"
  "$python" tests/gpu/evidence.py write "$work" "$out" 2>/dev/null || cp "$work/steps.tsv" "$out/evidence.tsv"
}

step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  wanted "$name" || return 0
  [ "$(left)" -ge 15 ] || { verdict "$name" "not run: no time was left"; return 1; }
  [ "$seconds" -lt "$(left)" ] || seconds=$(($(left) - 5))
  local before code words=$*
  printf '\n==== %s: %s\n' "$name" "$*" >>"$out/log.txt"
  before=$(stat -c %s "$out/log.txt")
  # asked to end by an interrupt: Python then ends what it started
  timeout -s INT -k 10 "$seconds" "$@" >>"$out/log.txt" 2>&1 </dev/null
  code=$?
  case $code in
    0) verdict "$name" passed $((SECONDS - began)) "$words" ;;
    3) verdict "$name" "not run: $(said_last "$before" 1)" $((SECONDS - began)) "$words" ;;
    1) # of a benchmark: it ran
      if [[ "$words" == *"-m benchmarks"* ]]; then
        verdict "$name" "ran: a target was missed or an engine failed, see its rows" $((SECONDS - began)) "$words"
      else
        verdict "$name" "failed with 1" $((SECONDS - began)) "$words"
      fi
      ;;
    124 | 137) verdict "$name" "failed: ended after $seconds s" $((SECONDS - began)) "$words" ;;
    *) verdict "$name" "failed with $code" $((SECONDS - began)) "$words" ;;
  esac
  said_last "$before" 4 | sed 's/^/    /'
  return $code
}

everything_fails() { verdict everything "not run: $1"; exit 1; }

command -v "$python" >/dev/null || everything_fails "there is no $python: name a Python in PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  everything_fails "$python is $("$python" -V 2>&1), and 3.11 or newer is needed: name one in PYTHON"

# ---- what was carried here

while IFS= read -r digest; do # what was cut into parts on the way
  whole=${digest%.sha256}
  [ -f "$whole" ] || find "$wheels" -type f -name "$(basename "$whole").part-*" -printf '%f\t%p\n' | sort | cut -f 2 |
    xargs -r -d '\n' cat >"$whole"
  (cd "$(dirname "$whole")" && sha256sum --status -c "$(basename "$digest")" 2>/dev/null) && continue
  rm -f "$whole"
  verdict wheels "failed: $(basename "$whole") is not whole, a part is missing or damaged"
done < <(find "$wheels" -name '*.whl.sha256' 2>/dev/null)

mapfile -t found < <(find "$wheels" -name '*.whl' -size +0 2>/dev/null | sort)
stamp=$(stat -c '%n %s' "${found[@]}" 2>/dev/null | sha256sum)$("$python" -V)
if [ "${#found[@]}" -gt 0 ] && [ "$(cat "$site/.stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -f "$site/.stamp"
  install=("$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir
    --upgrade --target "$site")
  # a wheel is an archive: without pip it is unpacked
  "$python" -m pip --version >/dev/null 2>&1 || install=("$python" -c 'import sys, zipfile
for wheel in sys.argv[2:]: zipfile.ZipFile(wheel).extractall(sys.argv[1])' "$site")
  if ! timeout -k 5 200 "${install[@]}" "${found[@]}" >>"$out/log.txt" 2>&1; then
    for wheel in "${found[@]}"; do # one that does not fit this machine stops them all: the others one by one
      timeout -k 5 60 "${install[@]}" "$wheel" >>"$out/log.txt" 2>&1 ||
        verdict "wheel $(basename "$wheel")" "failed: it does not install, see log.txt"
    done
  fi
  echo "$stamp" >"$site/.stamp"
fi
# what says which version we are, where the package itself is run from its sources
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)
mkdir -p "$site/isthmus-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: isthmus\nVersion: %s\n' "$version" >"$site/isthmus-$version.dist-info/METADATA"
export PYTHONPATH="${ISTHMUS_GPU_SIMULATION:+$ISTHMUS_GPU_SIMULATION:}$PWD:$site"
if ! lacking=$("$python" -c 'import numpy, msgspec, zmq, rich, structlog, onnx, pytest, pytest_timeout, hypothesis' 2>&1); then
  everything_fails "$python has no ${lacking##*No module named }: carry wheels here with tests/gpu/carry.sh, or name an environment in PYTHON"
fi
timeout 60 "$python" tests/gpu/evidence.py machine "$work" >>"$out/log.txt" 2>&1

# pycuda has no wheels: it is built here, beside the rest, if its source was carried and CUDA's headers are there
source=$(find "$wheels" -name 'pycuda-*.tar.gz' 2>/dev/null | head -n 1)
building=
if "$python" -c 'import pycuda' 2>/dev/null; then
  :
elif [ -n "$source" ] && command -v nvcc >/dev/null; then
  cuda=${CUDA_ROOT:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")}
  mkdir -p "$work/home"
  printf 'CUDA_ENABLE_CURAND = False\nCUDA_ROOT = "%s"\n' "$cuda" >"$work/home/.aksetup-defaults.py"
  HOME="$work/home" timeout -k 5 "$(left)" nice "$python" -m pip install --no-index --no-deps --no-build-isolation \
    --no-cache-dir --target "$site" "$source" >"$work/pycuda-build.log" 2>&1 &
  building=$!
fi

# ---- the steps

probed=$(timeout 60 "$python" -c 'from protocol.engines.driver import probe; print(probe())' 2>&1 | tail -n 1)
verdict driver "$probed"
[[ "$probed" == "driver for CUDA"* ]] || gpu=no
needs_gpu() { [ -z "${gpu:-}" ] || { wanted "$1" && verdict "$1" "not run: $probed"; return 1; }; }
tests() { # NAME SECONDS WHICH [FILE]
  needs_gpu "$1" && step "$1" "$2" "$python" -m pytest -q -rs -p no:cacheprovider -p no:randomly -o timeout=90 \
    -o junit_family=xunit1 --junitxml "$work/$1.xml" "${4:-tests/gpu/test_on_a_gpu.py}" -k "$3"
}
benchmark() { # NAME SECONDS OPTION...
  needs_gpu "$1" && step "$1" "$2" "$python" -m benchmarks gpu --json "$work/$1.json" "${@:3}"
}

step engines 60 "$python" -c 'from protocol.engines.catalogue import KINDS
for kind in KINDS.values(): print(kind.name, "|", kind.absent() or "here")'
tests onnxruntime-cuda 150 onnxruntime-cuda
benchmark onnxruntime-cuda-quick 120 --quick --set kinds=onnxruntime-cuda
tests cuda-python 60 'cuda-python and (bytes or more_than)'
tests tensorrt-rtx 180 tensorrt-rtx
benchmark tensorrt-rtx-quick 180 --quick --set kinds=tensorrt-rtx
tests tensorrt 200 '(tensorrt and not rtx and not onnxruntime) or replays'
benchmark tensorrt-quick 200 --quick --set kinds=tensorrt
for tail in tail_fc tail_r18 tail_light; do
  benchmark "onnxruntime-cuda-$tail" 150 --set kinds=onnxruntime-cuda --set "tails=$tail"
done
tests onnxruntime-tensorrt 150 onnxruntime-tensorrt
# (one of its tests starts a Python that knows nothing of our folder of wheels)
tests contract 90 'not tells_nobody' tests/unit/test_protocol_engines.py
if [ -n "$building" ] && wanted pycuda-build; then
  while kill -0 "$building" 2>/dev/null && [ "$(left)" -gt 60 ]; do sleep 1; done
  kill -0 "$building" 2>/dev/null && kill "$building"
  wait "$building" && verdict pycuda-build passed || verdict pycuda-build "failed: $(tail -n 1 "$work/pycuda-build.log")"
  cat "$work/pycuda-build.log" >>"$out/log.txt"
fi
tests pycuda 60 'pycuda and (bytes or more_than)'
for kind in tensorrt tensorrt-rtx; do
  for tail in tail_fc tail_r18; do benchmark "$kind-$tail" 240 --set "kinds=$kind" --set "tails=$tail"; done
done
[ -n "${ISTHMUS_GPU_SIMULATION:-}" ] || step simulated 300 "$python" -m pytest -q -rs -p no:cacheprovider tests/gpu --deselect tests/gpu/test_on_a_gpu.py
for name in $chosen; do
  grep -q "^$name"$'\t' "$work/steps.tsv" || verdict "$name" "not run: there is no such step"
done
verdict end "$(left) s left"
! grep -q $'\tfailed' "$work/steps.tsv"
