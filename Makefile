# make help lists the targets. Each works on a fresh Debian 12/13 or Ubuntu 24.04 machine and installs what it misses.
.DEFAULT_GOAL := help
.PHONY: help bootstrap up down test check bench soak clean
VENV := .venv

# Tests that need no machine to themselves run two at a time; those with microVMs, namespaces or a browser one after another.
SIDE_BY_SIDE := tests/unit tests/contract tests/api tests/client tests/cli

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

bootstrap:
	@scripts/bootstrap.sh

up: bootstrap  ## install what is missing, build the templates, start the server, run real code in a real microVM
	@scripts/up.sh

down:  ## pause the sandboxes of this home and stop its server; nothing is left running
	@scripts/down.sh

test: check  ## all tests, with real microVMs
	@scripts/bootstrap.sh --tests
	$(VENV)/bin/pytest $(SIDE_BY_SIDE) -m "not soak" -n 2 --dist loadfile
	$(VENV)/bin/pytest tests $(SIDE_BY_SIDE:%=--ignore=%) -m "not soak"

check: bootstrap  ## format, lint, types, import contracts, links in the documentation
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pytest -q tests/docs

bench: bootstrap  ## figures next to their floor, written to bench/results
	$(VENV)/bin/python bench/run.py
	$(VENV)/bin/python bench/over_http.py

soak: bootstrap  ## the long counts
	$(VENV)/bin/pytest tests -m soak --timeout 3600 --hypothesis-profile new

clean:  ## remove what was built in this checkout
	rm -rf $(VENV) .work .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
