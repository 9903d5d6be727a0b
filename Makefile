# Thin: every target sets up .venv when it is missing, then calls what a person would call.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OPTIMUM := .venv-optimum

.PHONY: demo test test-fast test-optimum lint bench clean

demo: $(READY)  ## fresh clone to admitted bundle, then three utterances through it
	$(BIN)/cockpit build configs/smollm2-135m.toml
	$(BIN)/python -m runtime runs/smollm2-135m/bundle "set the driver side to 22"
	$(BIN)/python -m runtime runs/smollm2-135m/bundle "open the sunroof and play some jazz"
	$(BIN)/python -m runtime runs/smollm2-135m/bundle "导航去西湖"

test: lint $(READY)  ## everything CI runs: lint, types, all tests, the second exporter
	$(BIN)/python -m pytest
	$(MAKE) test-optimum

test-fast: $(READY)  ## tests that need no real model: seconds
	$(BIN)/python -m pytest -m "not slow"

test-optimum: $(OPTIMUM)/.ready  ## second opinions in their own environment: optimum, onnxruntime-genai
	$(OPTIMUM)/bin/python -m pytest tests/test_optimum.py tests/test_genai.py

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## how fast the demo's bundle is here; benchmarks/README.md has it beside named peers
	$(BIN)/python -m runtime runs/smollm2-135m/bundle --bench
	$(BIN)/python benchmarks/operators.py runs/smollm2-135m/bundle

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'cockpit-edge needs Python 3.11 or newer; name one with make PYTHON=...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,build,qlora,dev]'
	touch $@

# optimum-onnx holds transformers below 4.58, which the main environment is above.
$(OPTIMUM)/.ready: pyproject.toml constraints.txt
	test -x $(OPTIMUM)/bin/python || $(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install --quiet \
		--editable '.[optimum]' 'torch==2.13.0' onnx-ir ml-dtypes pydantic pytest onnxruntime-genai
	touch $@

clean:  ## remove runs; environments and the download cache stay
	rm -rf runs
