# Two commands matter: `make serve` (a running server with a trained model) and `make test` (everything that must hold).

PYTHON ?= python3
DEV := .venv
SERVE := .venv-serve
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: serve test test-deploy bench protos clean
.DEFAULT_GOAL := help

help:
	@echo "make serve   make an environment (no torch) and serve the models in model_store/"
	@echo "make test    make the development environment and check everything"
	@echo "make test-deploy   run the real TorchServe, Prometheus, proxies and clients against the server (see deploy/README.md)"
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

# What a part of deploy/ needs, and the rest cannot live with, stands in an environment of its own.
test-deploy: $(DEV)/ready $(patsubst deploy/%/requirements.txt,.venv-deploy/%/ready,$(wildcard deploy/*/requirements.txt))
	$(DEV)/bin/python -m pytest deploy

.venv-deploy/%/ready: deploy/%/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

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
	rm -rf $(DEV) $(SERVE) .venv-deploy build *.egg-info
