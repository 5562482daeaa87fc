# Everything a newcomer or CI types. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ordermesh-setup
LOCKS := requirements/uv.txt requirements/dev.txt
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-annotate
ARGS ?=

.PHONY: help setup demo up down test nightly check format docs proto proto-release telemetry lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Create .venv with everything, checked against the locked hashes

$(STAMP): $(LOCKS) pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "ordermesh needs Python 3.11 or newer; '$(PYTHON)' is not on the PATH (set PYTHON=...)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ordermesh needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1) (set PYTHON=...)." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "ordermesh needs Python's venv module; on Debian and Ubuntu: apt install python3-venv." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/uv.txt
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/uv.txt requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Run everything here: a kill -9, a dead letter, old months to S3, a statement
	@$(BIN)/ordermesh demo $(ARGS)

up: setup ## Start the local stack in the background (ARGS="--port-base 0" for free ports)
	@$(BIN)/ordermesh dev --detach $(ARGS)

down: setup ## Stop the local stack
	@$(BIN)/ordermesh down $(ARGS)

test: setup ## Run the tests (ARGS="-k name" to choose)
	-@$(BIN)/python -m ops.artifacts
	@$(BIN)/python -m pytest tests --ignore tests/nightly --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

nightly: setup ## Run what takes longer than `make test` has time for
	@STATEMENT_TWIN_EXAMPLES=1000 HISTORY_TWIN_EXAMPLES=1000 $(BIN)/python -m pytest tests/model/test_statement_twin.py \
		tests/model/test_history_machine.py::test_every_list_ends_where_the_archive_begins_and_nowhere_else tests/nightly $(ARGS)

check: setup ## Lint, types, import directions, protos, fresh stubs
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/proto.py check
	@$(BIN)/python scripts/telemetry.py check

format: setup ## Rewrite Python and protos in the house format
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format
	@$(BIN)/buf format protos --write

telemetry: setup ## Generate metrics.py, rules and dashboards from telemetry/
	@$(BIN)/python scripts/telemetry.py generate

docs: setup ## Print the pages of docs/ that the code knows
	@$(BIN)/python scripts/docs.py generate

proto: setup ## Generate ordermesh/ from protos/
	@$(BIN)/python scripts/proto.py generate

proto-release: setup ## Make today's protos the baseline that `make check` compares with
	@$(BIN)/python scripts/proto.py release

lock: setup ## Renew requirements/*.txt from requirements/*.in
	@$(COMPILE) --upgrade requirements/uv.in --output-file requirements/uv.txt
	@$(COMPILE) --upgrade requirements/dev.in --output-file requirements/dev.txt
	@$(COMPILE) --upgrade requirements/go.in --output-file ops/go/toolchain.txt
	@$(COMPILE) requirements/runtime.in --constraint requirements/dev.txt --output-file requirements/runtime.txt

clean: ## Remove the virtual environment and caches (never a stack's data)
	@rm -rf $(VENV) .cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
