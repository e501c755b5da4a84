# make demo: install, run the pipeline on the built-in task, print its table.
# make test: install the test tools, then lint, formatting, types and tests.
# make bench: measure time, disk and memory, and print them next to their targets; takes minutes.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test bench

demo: .venv/installed
	dvc repro
	@echo
	@cat artifacts/report/accuracy.md

test: .venv/installed-test
	ruff check .
	ruff format --check .
	mypy
	python -m pytest --numprocesses 2 --dist loadfile

bench: .venv/installed-test
	@set -e; for script in $(filter-out %/measure.py,$(wildcard tests/benchmarks/*.py)); do \
		PYTHONPATH=.:tests python $$script; \
	done

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv, which takes some minutes the first time"
	$(PYTHON) -m venv .venv
	pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
