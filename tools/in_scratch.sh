#!/usr/bin/env bash
# Run a command with a temporary folder of its own, removed afterwards: tests leave nothing behind.
set -uo pipefail
TMPDIR=$(mktemp -d /tmp/sc-XXXXXX) || exit 1
export TMPDIR
chmod 755 "$TMPDIR"  # as root, the tests' database server runs as another user and must get in
trap 'rm -rf "$TMPDIR"' EXIT
"$@"
