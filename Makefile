PYTHON ?= python3
VENV := .venv
RUN := runs/digits

.PHONY: install demo test
.NOTPARALLEL:

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -e '.[dev,export,offline,shards,studio,tensorboard]'
	touch $@

demo: install  ## train on real digits, sample, and measure the samples
	$(VENV)/bin/spheregen train recipes/digits.toml --run $(RUN)
	$(VENV)/bin/spheregen sample $(RUN) --no-singles --out demo
	$(VENV)/bin/spheregen reconstruct $(RUN) --out demo/reconstructions.png
	$(VENV)/bin/python benchmarks/digits_measures.py $(RUN) --out demo

test: install  ## linter, type checker and tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest
