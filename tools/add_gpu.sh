#!/usr/bin/env bash
# Add CuPy and NVRTC to the virtual environment $1, so that CUDA kernels are compiled in tests without a GPU.  Where
# that is impossible the tests that need it are skipped: say so and go on.  --device: a GPU is there, add its libraries.
set -euo pipefail
venv=${1:-.venv}
cd "$(dirname "$0")/.."
locks=(-r requirements-gpu.lock)
marker=$venv/.installed-gpu
if [ "${2:-}" = --device ]; then locks+=(-r requirements-gpu-device.lock); marker=$venv/.installed-gpu-device; fi
if [ "$marker" -nt requirements-gpu.lock ] && [ "$marker" -nt "$venv/.installed" ]; then exit 0; fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
echo "adding CuPy and the CUDA compiler to $venv (once)"
log=$(mktemp)
if "$venv/bin/python" -m pip install --no-deps "${locks[@]}" >"$log" 2>&1; then
  touch "$marker"
  rm -f "$log"
  exit 0
fi
grep -iE 'error|no matching' "$log" | tail -n 3 >&2 || true
echo "CuPy could not be installed here; the tests of the CUDA text will be skipped (log: $log)" >&2
[ "${2:-}" != --device ]
