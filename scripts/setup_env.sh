#!/usr/bin/env bash
# Set up a virtual environment for mm_ummae; needs Python 3.11, a C++ compiler and a package index.
#
#   scripts/setup_env.sh [VENV [PINS]]        default: .venv requirements/onedl.txt
#   scripts/setup_env.sh .venv-openmmlab requirements/openmmlab.txt      the original packages
#
# Environment variables: PYTHON (interpreter, default python3.11, else python3), FORCE_CUDA (1 compiles
# MMCV's CUDA ops too, default 0), MAX_JOBS (compiler processes, default: cores),
# MM_UMMAE_CACHE (folder of compiled MMCV wheels, default ~/.cache/mm_ummae).
# A finished environment holds a stamp of its inputs: a second call returns at once.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$(realpath -m "${1:-$root/.venv}")
pins=$(realpath -m "${2:-$root/requirements/onedl.txt}")
export FORCE_CUDA=${FORCE_CUDA:-0} MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

[ -f "$pins" ] || die "no such requirement file: $pins"
# The version too: the metadata of an editable install keep the one they were made with.
inputs=("$pins" "$root/setup.py" "$root/mm_ummae/version.py")
stamp=$venv/.mm_ummae-$( { cat "${inputs[@]}"; echo "$root $FORCE_CUDA"; } | sha256sum | cut -c1-16)
[ -f "$stamp" ] && exit 0

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] || die "Python 3.11 is needed, but there is no python3 on PATH (Debian: apt-get install python3.11-venv)"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || die "cannot run $python"
[ "$version" = 3.11 ] || die "Python 3.11 is needed, but $python is $version (name another one with PYTHON=/path/to/python3.11)"
for tool in gcc g++ make; do
    command -v $tool >/dev/null || die "$tool is needed to compile MMCV's ops (Debian: apt-get install build-essential python3.11-dev)"
done
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
[ -f "$header" ] || die "Python's C headers are needed to compile MMCV's ops, but $header is missing (Debian: apt-get install python3.11-dev)"

pinned() { grep -E "^($1)==" "$pins" || true; }
torches=$(pinned 'torch|torchvision') mmcv=$(pinned 'mmcv|onedl-mmcv')
[ -n "$torches" ] && [ -n "$mmcv" ] || die "$pins must pin torch==, torchvision== and mmcv== or onedl-mmcv=="

if [ ! -x "$venv/bin/pip" ]; then
    say "creating $venv"
    "$python" -m venv "$venv" || die "python -m venv failed (Debian: apt-get install python3.11-venv)"
fi
# With the pins as constraints, or PyTorch and MMCV would install the newest NumPy first
pip() { "$venv/bin/python" -m pip install --quiet --constraint "$pins" "$@"; }

say "1/4 PyTorch (${torches//$'\n'/, }); several GB on first use"
# shellcheck disable=SC2046,SC2086
pip $(pinned 'setuptools|wheel|packaging|ninja|psutil') $torches

# pip's own cache of wheels does not know which PyTorch an extension was compiled against, so the wheel is kept
# in a folder named after it, and moved there only when complete.
torch=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
wheels=${MM_UMMAE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mm_ummae}/$mmcv-torch$torch-py$version-$(uname -m)-cuda$FORCE_CUDA
if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
    say "2/4 compiling $mmcv with its ops, $MAX_JOBS at a time: about ten minutes on two cores, the first time only"
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    "$venv/bin/python" -m pip wheel --no-build-isolation --no-deps --no-cache-dir --no-binary :all: \
        --wheel-dir "$build" "$mmcv" >"$build/log" 2>&1 &
    pid=$!
    started=$SECONDS
    while kill -0 $pid 2>/dev/null; do
        sleep 2
        [ $(((SECONDS - started) % 60)) -lt 2 ] && say "    compiling for $(((SECONDS - started) / 60)) min"
    done
    wait $pid || { tail -n 40 "$build/log" >&2; die "compiling $mmcv failed: its last output is above"; }
    mkdir -p "$wheels"
    mv "$build"/*.whl "$wheels/"
else
    say "2/4 $mmcv: compiled before, taken from $wheels"
fi
pip "$wheels"/*.whl

say "3/4 the OpenMMLab packages, data and test tools"
pip -r "$pins"
say "4/4 mm_ummae itself, editable"
"$venv/bin/python" -m pip uninstall -qq --yes mm_ummae  # its name before version 0.6
pip --no-build-isolation --no-deps -e "$root"
"$venv/bin/python" -c 'import mm_ummae, mmcv.ops' || die "the new environment cannot import mm_ummae and mmcv.ops: see above"
rm -f "$venv"/.mm_ummae-*
touch "$stamp"
say "done: $venv"
