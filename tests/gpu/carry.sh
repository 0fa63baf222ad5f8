#!/usr/bin/env bash
# Gathers what run_all.sh installs on a GPU machine that has no network: `tests/gpu/carry.sh [OPTION...]`
#
#   --python 3.12     the Python of that machine (x86-64)
#   --to FOLDER       where wheels are put; .gpu-wheels unless named
#   --cuda            NVIDIA's CUDA 13 and cuDNN 9 as well, 1.3 GiB, for ONNX Runtime where the machine lacks them
#   --there FILE      leave out what that machine has: one name a line, as `pip list` or `pip freeze` prints them
#   --parts MIB       cut what is larger than so many MiB into parts, for a way that carries only small files;
#                     run_all.sh joins them again and compares their digests
#   --loads MIB       put all of it into folders load-1, load-2, ... of at most so many MiB, for a way that carries so
#                     much at once; with --parts of less. run_all.sh wants them side by side in .gpu-wheels
#
# TensorRT's own libraries lie on NVIDIA's index, not on the Python index: name it with
# NVIDIA_INDEX=https://pypi.nvidia.com, or they are left out and TensorRT is "not run" there.
set -uo pipefail
cd "$(dirname "$0")/../.."
version=3.12 target=.gpu-wheels parts= cuda= there= loads=
while [ $# -gt 0 ]; do
  case $1 in
    --cuda) cuda=yes; shift ;;
    --python | --to | --parts | --there | --loads)
      [ $# -ge 2 ] || { echo "$1 wants a value" >&2; exit 2; }
      case $1 in --python) version=$2 ;; --to) target=$2 ;; --parts) parts=$2 ;; --there) there=$2 ;; --loads) loads=$2 ;; esac
      shift 2
      ;;
    *) echo "unknown option $1; the first lines of $0 say which there are" >&2; exit 2 ;;
  esac
done
case $parts in *[!0-9]* | 0) echo "--parts wants a number of MiB, not $parts" >&2; exit 2 ;; esac
case $loads in *[!0-9]* | 0) echo "--loads wants a number of MiB, not $loads" >&2; exit 2 ;; esac
[ -z "$there" ] || [ -r "$there" ] || { echo "--there wants a file, and $there cannot be read" >&2; exit 2; }
python=${PYTHON:-python3}
"$python" -m pip --version >/dev/null 2>&1 || { echo "$python has no pip; name one that has in PYTHON" >&2; exit 2; }
mkdir -p "$target"
missing=0
known() { # whether that machine has it
  [ -n "$there" ] && sed 's/[ =<>@;].*//; s/_/-/g' "$there" | tr '[:upper:]' '[:lower:]' | grep -qx -- "${1%%[=<>~]*}"
}
locked() { # the version that this project is tested with: a newer one may want what is not carried
  awk -v name="name = \"$1\"" '$0 == name { getline; gsub(/version = |"/, ""); print "==" $0; exit }' uv.lock
}
fetch() { # PACKAGE, or options and PACKAGE
  known "${!#}" && return
  local version_of
  [ $# -gt 1 ] || version_of=$(locked "$1")
  if [ -n "${version_of:-}" ]; then download "$1$version_of" && return; fi
  download "$@" || { echo "not carried: $*"; missing=$((missing + 1)); }
}
download() {
  local platforms=()
  for n in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${n}_x86_64"); done
  "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "$version" --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
    --platform manylinux1_x86_64 -d "$target" "$@"
}
# what the tests and the gateway stand on, each without its dependencies
for package in numpy msgspec pyzmq isal backports-zstd rich typer pydantic pydantic-core annotated-types typing-inspection structlog uvicorn httptools uvloop click h11 \
  markdown-it-py mdurl pygments shellingham typing-extensions annotated-doc cryptography cffi pycparser dnspython \
  watchfiles anyio idna starlette hypothesis sortedcontainers pytools platformdirs siphash24 setuptools wheel pytest pytest-timeout iniconfig pluggy packaging onnx \
  onnx-ir onnxruntime-gpu cuda-bindings cuda-pathfinder flatbuffers protobuf ml-dtypes sympy mpmath scipy pillow; do fetch "$package"; done
fetch tensorrt-rtx-cu13-bindings==1.7.1.116
fetch tensorrt-rtx-cu13-libs==1.7.1.116
# these two have no wheels; the first is what `import tensorrt_rtx` finds
for package in tensorrt-rtx-cu13==1.7.1.116 tensorrt-rtx==1.7.1.116; do
  "$python" -m pip wheel -q --disable-pip-version-check --no-deps -w "$target" "$package" ||
    { echo "not carried: $package"; missing=$((missing + 1)); }
done
if [ -n "$cuda" ]; then
  for package in nvidia-cuda-nvrtc~=13.0 nvidia-cuda-runtime~=13.0 nvidia-cublas~=13.0 nvidia-cufft~=12.0 \
    nvidia-curand~=10.0 nvidia-nvjitlink~=13.0 nvidia-cudnn-cu13~=9.0; do fetch "$package"; done
fi
if [ -n "${NVIDIA_INDEX:-}" ]; then
  for package in tensorrt_cu13_libs tensorrt_cu13_bindings tensorrt_cu13 tensorrt; do
    fetch --extra-index-url "$NVIDIA_INDEX" "$package"
  done
else
  echo "not carried: TensorRT (name NVIDIA's index in NVIDIA_INDEX)"
fi
if ! compgen -G "$target/pycuda-*.tar.gz" >/dev/null; then
  # it is built where it is used; pip asks its source what it is, and that answers only where it is told of some CUDA
  home=$(mktemp -d)
  printf 'CUDA_ENABLE_CURAND = False\nCUDA_ROOT = "%s"\n' "$home" >"$home/.aksetup-defaults.py"
  HOME=$home "$python" -m pip download -q --disable-pip-version-check --no-deps --no-binary pycuda -d "$target" \
    pycuda==2026.1 || echo "not carried: pycuda (put pycuda-2026.1.tar.gz from the Python index into $target)"
  rm -rf "$home"
fi
echo "wheels of more than 10 MiB:"
find "$target" -maxdepth 1 -name '*.whl' -size +10M -printf '%s %f\n' | sort -rn |
  awk '{ printf "  %5.0f MiB  %s\n", $1 / 1048576, $2 }'
echo "$(find "$target" -maxdepth 1 -name '*.whl' | wc -l) wheels, $(du -shL "$target" | cut -f1)"
if [ -n "$parts" ]; then
  find "$target" -maxdepth 1 -name '*.whl' -size +"$((parts * 1024))"k -print0 | while IFS= read -r -d '' wheel; do
    (cd "$target" && sha256sum "$(basename "$wheel")" >"$(basename "$wheel").sha256") &&
      split -b "${parts}M" -d -a 3 "$wheel" "$wheel.part-" && rm "$wheel"
  done
  echo "$(find "$target" -maxdepth 1 -name '*.part-*' | wc -l) parts of at most $parts MiB"
fi
if [ -n "$loads" ]; then
  number=1 filled=0
  while IFS=$'\t' read -r size path; do
    if [ $((filled + size)) -gt $((loads * 1048576)) ] && [ "$filled" -gt 0 ]; then number=$((number + 1)) filled=0; fi
    mkdir -p "$target/load-$number" && mv "$path" "$target/load-$number/" && filled=$((filled + size))
  done < <(find "$target" -maxdepth 1 -type f -printf '%s\t%p\n' | sort -rn)
  echo "$number loads of at most $loads MiB: $target/load-1 to load-$number"
fi
[ "$missing" = 0 ]
