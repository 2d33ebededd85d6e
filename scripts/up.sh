#!/usr/bin/env bash
# `make up`, once everything is installed: builds the templates, starts the server in the background unless it runs, and runs code in a microVM.
set -euo pipefail
cd "$(dirname "$0")/.."
up() { .venv/bin/python -m torpor.apps.up "$@"; }

log=$(up check)
if [ -n "$log" ]; then
  .venv/bin/torpor build --warm
  # A session of its own: the server stays when the terminal goes, and Ctrl-C here is not for it.
  setsid .venv/bin/torpor serve >>"$log" 2>&1 </dev/null &
  up wait $! "$log"
fi
echo "torpor: running code in a microVM"
.venv/bin/torpor run -- python3 -c 'import platform; print("Hello from a microVM: Linux", platform.release(), "and Python", platform.python_version())'
up tell
