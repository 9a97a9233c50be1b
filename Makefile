PYTHON ?= python3
VENV := .venv
RUN := runs/digits
DIGITS := runs/digits
FASHION := runs/fashion_mnist

.PHONY: install demo gallery test
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

gallery: install  ## the paper's pictures, from models trained here: docs/gallery/
	$(VENV)/bin/python docs/gallery/make.py runs/digits=$(DIGITS) runs/fashion_mnist=$(FASHION)

test: install  ## linter, type checker and tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -n 2 --dist loadfile
