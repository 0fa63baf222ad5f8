# Everything a stranger needs: `make demo` and `make test` do all set-up on a machine with Python 3.11+, make and git.

SHELL := /bin/bash
.DEFAULT_GOAL := help
export UV_PYTHON_DOWNLOADS := never
# uv if it is there, else one of our own, installed from the package index into .tools
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
PYTHON ?= python3
EXTRAS := --extra edge --extra gateway --extra partition
# What tests need besides: every optional part that runs without hardware of its own.
MORE := --extra grpc --extra tracing --extra redis --extra tune
RUN := .venv/bin/

.PHONY: help setup setup-dev demo test check explore bench wheel gpu-gate clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

.tools/bin/uv:
	@echo "uv is not installed: putting one into .tools"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older; name another with PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .tools >/dev/null 2>&1 && .tools/bin/python -m pip install --quiet 'uv>=0.8' || \
	  { rm -rf .tools; $(PYTHON) -m pip install --quiet --target .tools 'uv>=0.8'; }

setup: $(filter .tools/%,$(UV)) ## the environment for the demo, from the lock file
	@$(UV) sync --quiet --locked --inexact $(EXTRAS) --group demo

setup-dev: $(filter .tools/%,$(UV))
	@$(UV) sync --quiet --locked $(EXTRAS) $(MORE) --group demo --group dev

demo: setup ## split a real model, run gateway and agent over a link that gets worse and dies [MODEL=.. DATA=.. ARGS=..]
	@$(RUN)python -m examples.demo $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) $(ARGS)

check: setup-dev ## lint, format, types
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

# Tests start many processes: what one has compiled the next one reads, whatever the environment says.
test: export PYTHONDONTWRITEBYTECODE :=
test: export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycode
test: setup-dev ## everything: check, then every test
	@# Every worker would compile every test for itself: one does so beforehand, beside the checks, which take one core.
	@$(RUN)pytest --collect-only -qq >/dev/null 2>&1 & compiling=$$!; \
	  $(MAKE) --no-print-directory check; checked=$$?; wait $$compiling; exit $$checked
	$(RUN)pytest -n auto --dist loadfile --no-loadscope-reorder -m 'not alone' $(ARGS)
	$(RUN)pytest -m alone tests/integration/test_link_emulator.py $(ARGS)

explore: setup-dev ## the property tests with new random examples, 20 times as many
	ISTHMUS_EXAMPLES=explore $(RUN)pytest -q $$(grep -rl --include='test_*.py' 'from hypothesis' tests/unit) $(ARGS)

bench: setup-dev ## every benchmark suite; figures go to bench-out/
	@mkdir -p bench-out
	@for suite in $$($(RUN)python -m benchmarks --list | awk '{print $$1}'); do \
	  $(RUN)python -m benchmarks $$suite --json bench-out/$$suite.json || exit 1; done

wheel: $(filter .tools/%,$(UV)) ## dist/isthmus-*.whl, for machines without a checkout
	@$(UV) build --quiet --wheel --out-dir dist

# TensorRT-RTX builds engines without a GPU. Its own environment, since most machines have no use for its 1 GB.
gpu-gate: setup-dev ## compile every tail with TensorRT-RTX, and run real pycuda on a simulated driver; needs no GPU
	@tests/gpu/gate.sh $(ARGS)

clean: ## everything that was made here
	rm -rf .venv .venv-gpu .tools .cache build dist demo-out bench-out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
