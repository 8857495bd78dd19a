# Everything runs in .venv, which the first target that needs it makes. PYTHON may name another 3.11 or newer.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ON_ALL_CORES := --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all bench lint clean

demo: $(READY)
	$(BIN)/python -m compat.demo --out runs/demo

test: lint
	$(BIN)/python -m pytest $(ON_ALL_CORES)

test-all: lint
	$(BIN)/python -m pytest $(ON_ALL_CORES) -m "not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(READY)
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { echo "need Python 3.11 with venv; name it: make PYTHON=/path/to/python3"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cpu,onnx,neighbors,demo,test]"
	touch $(READY)

clean:
	rm -rf $(VENV) runs build dist
