# make demo   a first result in about two minutes     make test   everything CI runs, except lint
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-slow lint bench bench-gpu clean

demo: .venv/ready
	$(BIN)/contrapose demo

test: .venv/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-slow: .venv/ready-dev
	$(BIN)/python -m pytest -q -m slow

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready-bench
	$(BIN)/contrapose bench
	$(BIN)/python -m benchmarks.views
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.feeding

bench-gpu: .venv/ready-bench
	$(BIN)/python -m benchmarks.gpu

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

.venv/ready-bench: .venv/ready-dev
	$(BIN)/pip install --quiet --editable '.[peers]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
