# make setup | demo | test | lint      CUDA=1 installs the CUDA set; ARGS="..." goes to the command.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint

# Files of tests at the same time: while one waits for processes to start, the other computes.
JOBS ?= 2
BUILD := $(if $(filter 1,$(CUDA)),cuda,cpu)

help:
	@echo "make setup   install everything into .venv (Python 3.11; CUDA=1 for GPUs)"
	@echo "make demo    train the small policy end to end; ARGS='run.seed=1 ...' overrides keys"
	@echo "make test    every test but those marked gpu or slow; ARGS='-k name' selects, JOBS=2 at once"
	@echo "make lint    ruff and mypy"

setup:
	@deploy/setup.sh $(BUILD)

demo: setup
	.venv/bin/credence train configs/demo.yaml $(ARGS)

test: setup
	.venv/bin/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
