#!/usr/bin/env bash
# The last lines of `make up`: what a newcomer does next.
set -euo pipefail
cat <<'TEXT'

torpor is ready. Next:

  .venv/bin/torpor run -- python3 -c 'print(6*7)'   run something
  .venv/bin/torpor run -- bash                      a terminal in a fresh microVM
  .venv/bin/torpor serve                            the HTTP API, on 127.0.0.1:8080
  .venv/bin/torpor host                             keep ready sandboxes for torpor run
  .venv/bin/torpor doctor                           what holds on this machine
TEXT
