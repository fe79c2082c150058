#!/usr/bin/env bash
# Run the quick tests in two halves at once: tools/unit_tests.sh BIN.  Half of them mostly compute, the others mostly wait.
set -uo pipefail
bin=$1
waiting=(tests/parallel tests/db)
log=$(mktemp)
"$bin/python" -m pytest -q -m "not slow" --color=no "${waiting[@]}" >"$log" 2>&1 &
other=$!
trap 'kill $other 2>/dev/null' INT TERM
"$bin/python" -m pytest -q -m "not slow" tests "${waiting[@]/#/--ignore=}"
code=$?
wait $other
waited=$?
echo "${waiting[*]}:"
tail -n 60 "$log"
rm -f "$log"
[ $code -eq 0 ] && [ $waited -eq 0 ]
