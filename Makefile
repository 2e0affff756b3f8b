# Every target does its own set-up; `make help` lists them.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup demo test chaos unit check lint types imports docs clean
help:                ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.done: requirements/dev.lock pyproject.toml
	@tools/setup venv $(VENV)
	@touch $@

setup: $(VENV)/.done ## install what a bare Debian 12 lacks (asks for root only where packages are missing), and the Python environment
	@tools/setup packages

demo: setup          ## the main job: seal an unchanged image, boot a measured pod VM, release its key, then attack it
	@$(BIN)/cloister demo

unit: $(VENV)/.done  ## unit and architecture tests, no network, no VM, no other program, on all processors
	@$(BIN)/python tools/unit.py tests/unit tests/architecture -- -m 'not tool and not long' --hypothesis-profile quick -p no:schemathesis

test: setup          ## all tests, with real tools and real pod VMs
	@tools/setup test-packages
	@$(BIN)/cloister podvm build
	@$(PYTEST) tests

chaos: setup         ## break the trust service for ten minutes under load; `make test` has a minute of it
	@tools/setup test-packages
	@$(BIN)/python tests/chaos/run.py

lint: $(VENV)/.done
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.done
	@$(BIN)/mypy

imports: $(VENV)/.done
	@$(BIN)/lint-imports

docs: $(VENV)/.done  ## rewrite what is generated in README and docs
	@$(BIN)/python tools/docs.py --write

check: $(VENV)/.done lint types imports ## linters, types, import contract, help and refusals in the docs
	@$(BIN)/python tools/docs.py --check

clean:               ## remove what make made here; the cache outside the tree stays
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
