# make demo: 16 cats with the bundled weights.  make test: every check but the slow ones.  make test-all: those too.
# make lint: style and types only.  make memcheck: no kernel reads or writes out of bounds (a GPU and CUDA's tools).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-all lint memcheck format clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	$(RUN) -m jobs.demo --out out/demo

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint
	$(RUN) -m pytest

test-all: lint
	$(RUN) -m pytest -m 'slow or not slow'

# The first run compiles the kernels, which the sanitizer would take for ever to watch. It sees the end of a tensor only
# where each has memory of its own.
memcheck: $(VENV)/installed
	$(RUN) tests/memcheck.py
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 $(RUN) tests/memcheck.py

format: $(VENV)/installed
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf $(VENV) out build *.egg-info
