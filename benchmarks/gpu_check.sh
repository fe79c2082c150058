#!/usr/bin/env bash
# On a machine with a CUDA device: the parity tests on it, then the table of times.  Run from anywhere.
#
#   benchmarks/gpu_check.sh            .venv, made if needed (about 1.5 GB with the CUDA libraries)
#   PYTHON=python3 benchmarks/gpu_check.sh    that Python as it is: it must have numpy, scipy, cupy and pytest
#
# Exit code: 0 all agree, 1 a test or a kernel failed, 2 no device or no way to use it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if [ ! -e /dev/nvidiactl ] && ! ldconfig -p 2>/dev/null | grep -q 'libcuda\.so' && [ ! -e /dev/dxg ]; then
  echo "gpu_check: no NVIDIA driver on this machine (no /dev/nvidiactl, no libcuda); nothing was measured" >&2
  exit 2
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
  [ -e .venv/.installed ] || { ./tools/make_venv.sh .venv && touch .venv/.installed; } || exit 2
  ./tools/add_gpu.sh .venv --device || exit 2
  python=.venv/bin/python
elif ! "$python" -c 'import numpy, scipy, cupy, pytest'; then
  echo "gpu_check: $python lacks a package; leave PYTHON unset and .venv is made" >&2
  exit 2
fi

"$python" - <<'EOF' || exit 2
import sys
try:
    import cupy
    driver, n = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.getDeviceCount()
    float(cupy.arange(3).sum())
except Exception as err:
    sys.exit(f"gpu_check: no CUDA device answers: {type(err).__name__}: {err}\n"
             "  a driver for CUDA 13 (580 or newer) is needed; nvidia-smi shows what is there")
print(f"{n} device(s), driver for CUDA {driver // 1000}.{driver % 1000 // 10}, CuPy {cupy.__version__}")
EOF

# without setup.cfg and the outer conftest.py: the kernels need neither the pipeline nor its packages
code=0
"$python" -m pytest -c /dev/null --rootdir "$PWD" --confcutdir tests/gpu_kernels -p no:cacheprovider -q \
  -W ignore::pytest.PytestUnknownMarkWarning -m gpu tests/gpu_kernels || code=1
echo
"$python" benchmarks/gpu_table.py || code=1
exit $code
