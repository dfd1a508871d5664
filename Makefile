# `make demo` and `make test` need Python 3.11 or newer and the package index, nothing else.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: demo serve test long bench check format clean

# torch first and by its exact version, so that no other package pulls a larger build.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Tafdil needs Python 3.11 or newer; none was found. Set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[train,local]"
	@touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[train,local,postgres,dev]"
	@touch .venv/run.stamp $@

demo: .venv/run.stamp
	$(BIN)/tafdil demo

serve: .venv/run.stamp
	$(BIN)/tafdil serve

# Many tests wait, so three files at a time keep two cores busy. In their own order the long ones come first.
# Where Python writes no bytecode, each of the processes would rewrite the assertions of all tests and plugins anew.
test: export PYTHONDONTWRITEBYTECODE :=
test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Tests that repeat others on many more runs.
long: .venv/dev.stamp
	$(BIN)/python -m pytest -m long

# Hours on a small machine, one after the other; each has options (`--help`).
bench: .venv/dev.stamp
	$(BIN)/python -m benchmarks.train_throughput
	$(BIN)/python -m benchmarks.first_step
	$(BIN)/python -m benchmarks.compare_latency
	$(BIN)/python -m benchmarks.read_latency --database sqlite
	$(BIN)/python -m benchmarks.validate_throughput
	$(BIN)/python -m benchmarks.tokenize_throughput
	$(BIN)/python -m benchmarks.screens
	$(BIN)/python -m benchmarks.effect_calibration
	$(BIN)/python -m benchmarks.demo_proof

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv
