#!/usr/bin/env bash
# Make the virtual environment $1 with the pinned dependencies; say clearly what is missing.
set -euo pipefail
venv=${1:-.venv}
cd "$(dirname "$0")/.."

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then python=$candidate; break; fi
  done
fi
if [ -z "$python" ]; then
  echo "Python 3.11 or newer is needed and was not found." >&2
  echo "  Debian/Ubuntu:  sudo apt-get install python3 python3-venv      or name one:  make PYTHON=/path/to/python3 …" >&2
  exit 2
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "$python lacks the 'venv' module." >&2
  echo "  Debian/Ubuntu:  sudo apt-get install python3-venv" >&2
  exit 2
fi
echo "setting up $venv with $("$python" --version) (once; about a minute)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
log=$(mktemp)
if ! { "$venv/bin/python" -m pip install --no-deps -r requirements.lock &&
       "$venv/bin/python" -m pip install --no-deps --no-build-isolation -e . ; } >"$log" 2>&1; then
  tail -n 15 "$log" >&2
  echo "the installation failed; the whole log is in $log" >&2
  exit 1
fi
rm -f "$log"
