# Each target sets up what it needs the first time (.venv, about ten minutes for MMCV).
#
#   make test                tests of the package, the benchmarks and the demo, about five minutes on two cores
#   make test-slow           runs of whole programs: killed, in several processes, installed elsewhere, compared
#   make test-report         the page of tools/report.py in Chromium, which it installs on Debian (as root)
#   make test-openmmlab      the same tests with the original OpenMMLab packages, in .venv-openmmlab
#   make demo                pre-train, reconstruct, fine-tune, evaluate: SIZE=smoke for a minute of it, SEEDS=5
#   make demo-lomar          the same for LoMaR; SIZE and SEEDS as make demo
#   make demo-htcpp          HTC++ against Mask R-CNN in equal time, about half an hour a seed on one core: SEEDS="0 1 2"
#   make notebook            run demo/reconstruction.ipynb on the results of a demo: DEMO=work_dirs/demo-smoke
#   make notebook-own        run demo/own_images.ipynb on your images: FOLDER=/data/photos EPOCHS=10
#   make lint                ruff, codespell, links and commands of the docs, generated tables

PYTHON := .venv/bin/python
SIZE ?= full
SEEDS ?= 1
DEMO ?= work_dirs/demo
# A process per core, four at most: each holds PyTorch and all hosts. A file stays in one process with its fixtures
PYTEST := -m pytest -q --numprocesses=logical --maxprocesses=4 --dist=loadfile

.PHONY: demo demo-htcpp demo-lomar test test-slow test-report test-openmmlab notebook notebook-own lint setup

setup:
	@scripts/setup_env.sh

demo: setup
	@$(PYTHON) -m demo --size $(SIZE) --seeds $(SEEDS)

demo-htcpp: setup
	@$(PYTHON) -m demo.htcpp --seeds $(if $(filter command line environment,$(origin SEEDS)),$(SEEDS),0)

demo-lomar: setup
	@$(PYTHON) -m demo.lomar --size $(SIZE) --seeds $(SEEDS)

test: setup
	@$(PYTHON) $(PYTEST) -m "not slow and not browser"

test-slow: setup
	@$(PYTHON) $(PYTEST) -m slow

test-report: setup
	@command -v chromium > /dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends chromium; }
	@$(PYTHON) -m pytest -q tests/visualization/test_html_report.py tests/visualization/test_report_in_browser.py

test-openmmlab:
	@scripts/setup_env.sh .venv-openmmlab requirements/openmmlab.txt
	@.venv-openmmlab/bin/python $(PYTEST) -m "not browser"

notebook: setup
	@test -d $(DEMO) || { echo "notebook: no results in $(DEMO): run make demo first, or name others with DEMO=" >&2; exit 1; }
	@MM_UMMAE_DEMO=$(abspath $(DEMO)) .venv/bin/jupyter-execute demo/reconstruction.ipynb \
		--output=$(abspath $(DEMO))/reconstruction.ipynb --startup_timeout=300

notebook-own: setup
	@test -z "$(FOLDER)" -o -d "$(FOLDER)" || { echo "notebook-own: FOLDER is $(FOLDER), but there is no such folder" >&2; exit 1; }
	@mkdir -p work_dirs/own_images
	@$(if $(FOLDER),MM_UMMAE_IMAGES="$$(realpath "$(FOLDER)")") $(if $(EPOCHS),MM_UMMAE_EPOCHS=$(EPOCHS)) \
		.venv/bin/jupyter-execute demo/own_images.ipynb \
		--output=$(CURDIR)/work_dirs/own_images/own_images.ipynb --startup_timeout=300

lint: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m codespell_lib .
	@$(PYTHON) scripts/check_docs.py
	@$(PYTHON) scripts/tables.py --check
