# Two commands for everyone; each sets up what it needs the first time (.venv, about ten minutes for MMCV).
#
#   make demo     pre-train, look at reconstructions, fine-tune, evaluate: SIZE=smoke for one minute of it, SEEDS=3
#   make demo-htcpp     HTC++ against Mask R-CNN in equal time, about half an hour a seed on one core: SEEDS="0 1 2"
#   make demo-lomar     LoMaR: pre-train, show its windows, fine-tune, against scratch; SIZE and SEEDS as make demo
#   make test     the tests
#   make test-openmmlab     the same tests with the original OpenMMLab packages, in .venv-openmmlab
#   make notebook           run demo/reconstruction.ipynb on a demo's results: DEMO=work_dirs/demo-smoke
#   make lint     ruff and codespell

PYTHON := .venv/bin/python
SIZE ?= full
SEEDS ?= 1
DEMO ?= work_dirs/demo
# A process a core, four at most: each holds PyTorch and all hosts. A file stays in one, its fixtures are made once
PYTEST := -m pytest -q --numprocesses=logical --maxprocesses=4 --dist=loadfile

.PHONY: demo demo-htcpp demo-lomar test test-openmmlab notebook lint setup

setup:
	@scripts/setup_env.sh

demo: setup
	@$(PYTHON) tools/demo.py --size $(SIZE) --seeds $(SEEDS)

demo-htcpp: setup
	@$(PYTHON) tools/demo_htcpp.py --seeds $(if $(filter command line environment,$(origin SEEDS)),$(SEEDS),0)

demo-lomar: setup
	@$(PYTHON) tools/demo_lomar.py --size $(SIZE) --seeds $(SEEDS)

test: setup
	@$(PYTHON) $(PYTEST)

test-openmmlab:
	@scripts/setup_env.sh .venv-openmmlab requirements/openmmlab.txt
	@.venv-openmmlab/bin/python $(PYTEST)

notebook: setup
	@test -d $(DEMO) || { echo "notebook: no results in $(DEMO): run make demo first, or name others with DEMO=" >&2; exit 1; }
	@MM_UMMAE_DEMO=$(abspath $(DEMO)) .venv/bin/jupyter-execute demo/reconstruction.ipynb \
		--output=$(abspath $(DEMO))/reconstruction.ipynb --startup_timeout=300

lint: setup
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m codespell_lib .
