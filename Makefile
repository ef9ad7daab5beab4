# Two commands matter: `make serve` (a running server with a trained model) and `make test` (everything that must hold).

PYTHON ?= python3
DEV := .venv
SERVE := .venv-serve
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: serve test bench protos clean
.DEFAULT_GOAL := help

help:
	@echo "make serve   make an environment (no torch) and serve the models in model_store/"
	@echo "make test    make the development environment and check everything"
	@echo "make bench   measure; see benchmarks/README.md"
	@echo "make protos  regenerate the code in protos/"

serve: $(SERVE)/ready
	$(SERVE)/bin/ctm-serve

test: $(DEV)/ready
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports
	$(DEV)/bin/python -m protos.check
	$(DEV)/bin/python docs/update_readme.py --check
	$(DEV)/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

bench: $(DEV)/ready
	$(DEV)/bin/python -m benchmarks.throughput --save

protos: $(DEV)/ready
	PATH="$(CURDIR)/$(DEV)/bin:$$PATH" $(DEV)/bin/python -m protos.generate

$(DEV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python $(PIP) --editable '.[dev]'
	touch $@

$(SERVE)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python $(PIP) --editable '.[cpu]'
	touch $@

clean:
	rm -rf $(DEV) $(SERVE) build *.egg-info
