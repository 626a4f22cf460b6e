# Two commands for everyone; each sets up what it needs the first time (.venv, about ten minutes for MMCV).
#
#   make demo     pre-train, look at reconstructions, fine-tune, evaluate: SIZE=smoke for one minute of it, SEEDS=3
#   make test     the tests
#   make lint     ruff and codespell

PYTHON := .venv/bin/python
SIZE ?= full
SEEDS ?= 1

.PHONY: demo test lint setup

setup:
	@scripts/setup_env.sh

demo: setup
	@$(PYTHON) tools/demo.py --size $(SIZE) --seeds $(SEEDS)

test: setup
	@$(PYTHON) -m pytest -q

lint: setup
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m codespell_lib .
