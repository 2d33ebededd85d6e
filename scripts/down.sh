#!/usr/bin/env bash
# `make down`: stops what runs in the home. Sandboxes are paused first, then the host agent ends; nothing is left running.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "torpor: nothing is installed here."; exit 0; }
exec .venv/bin/python -m torpor.apps.down
