#!/usr/bin/env bash
# Run the tests marked "mpi" inside N ranks: tools/mpi_tests.sh BIN N TESTS…  A skipped MPI test is a failure.
set -uo pipefail
bin=$1 ranks=$2; shift 2
log=$(mktemp)
eval "$("$bin/python" -m seechange_mpi.mpi.launcher --print-environment)"
timeout -k 10 240 "$bin/mpiexec" -n "$ranks" "$bin/python" -m pytest -q --with-mpi -m mpi \
  --timeout 60 --timeout-method thread --color=no "$@" >"$log" 2>&1
code=$?
if [ $code -ne 0 ]; then tr -d '\000' <"$log" | tail -n 60; echo "MPI tests in $ranks ranks failed ($code)" >&2; exit 1; fi
if grep -aqE '[0-9]+ skipped' "$log"; then echo "MPI tests were skipped in $ranks ranks" >&2; exit 1; fi
if ! grep -aqE '[0-9]+ passed' "$log"; then echo "no MPI test ran in $ranks ranks" >&2; exit 1; fi
echo "MPI tests in $ranks ranks passed"
rm -f "$log"
