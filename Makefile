# `make demo` and `make test` work on a fresh machine: python3 with venv, make, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test check lint fix docs install clean

help:    ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: install    ## install, then run the main job on a tiny CLIP and real digits
	$(BIN)/fewshot demo

test: install    ## run all tests, in two processes
	$(BIN)/pytest -n 2 --dist worksteal

check: lint    ## lint, then run the tests that are not slow: before every commit
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

lint: install    ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: install    ## fix what ruff can fix by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install    ## build the documentation into build/docs
	$(BIN)/sphinx-build -W -n --keep-going -q docs build/docs

install: .venv/installed    ## make .venv, with everything that the tests need (about 6 GB)

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

clean:    ## remove .venv, build products and caches
	rm -rf .venv build dist .*_cache
