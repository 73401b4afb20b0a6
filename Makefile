# The study's commands. `make help` lists them.
PROFILE ?= cpu
SEEDS ?= 0
DEVICE ?= auto
NUM_GPUS ?= 1
JOBS ?= 0
DATA ?=
REUSE ?=

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DETECTRON2 ?= wheel
DETECTRON2_SHA256 = 491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561
DETECTRON2_COMMIT = a59f0563
WHEEL = $(VENV)/wheel/sal_detectron2-0.7.2-py3-none-any.whl
BIN = $(VENV)/bin
RESULTS = $(or $(BMASK_OUTPUT),.)/results/$(PROFILE)
READY = $(VENV)/bmask-$(DETECTRON2).ready
RUN_FLAGS = --profile $(PROFILE) --seeds $(SEEDS) --device $(DEVICE) --num-gpus $(NUM_GPUS) --jobs $(JOBS) \
            $(if $(DATA),--data "$(DATA)") $(if $(REUSE),--reuse)
NOTEBOOK_FLAGS = -p profile $(PROFILE) -p seeds $(SEEDS) -p device $(DEVICE) -p num_gpus $(NUM_GPUS) -p jobs $(JOBS) \
                 $(if $(DATA),-p data "$(DATA)") $(if $(REUSE),-p reuse True)

.PHONY: help setup test lab clean reproduce-table-3
.DEFAULT_GOAL := help

help:  ## list the targets and variables
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 28
	@echo
	@echo "Variables, with their defaults:"
	@echo "  PROFILE=cpu     smoke, cpu, gpu, nuclei or paper: data, backbone and schedule"
	@echo "  SEEDS=0         runs of each row, such as 0,1,2"
	@echo "  DEVICE=auto     cpu or cuda"
	@echo "  NUM_GPUS=1      GPUs of one run (with DEVICE=cpu: processes)"
	@echo "  JOBS=0          runs at a time; 0: one a core, or one on a GPU"
	@echo "  DATA=           folder of the data set, for nuclei and paper"
	@echo "  REUSE=          1 takes the committed records instead of training anew"
	@echo "  DETECTRON2=wheel  upstream compiles detectron2 from GitHub instead"

setup: $(READY)  ## create .venv and install the pinned packages

$(READY): requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed, and $(PYTHON) is another: name one with PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -r requirements.txt
	$(MAKE) --no-print-directory VENV=$(VENV) detectron2-$(DETECTRON2)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The wheel is tagged for Python 3.10, but its Python runs on any 3.x, and its compiled part stays unused.
.PHONY: detectron2-wheel detectron2-upstream
detectron2-wheel:
	@rm -rf $(VENV)/wheel
	$(BIN)/python -m pip download -q --disable-pip-version-check sal-detectron2==0.7.2 --no-deps \
	  --only-binary=:all: --python-version 3.10 --dest $(VENV)/wheel
	@mv $(VENV)/wheel/sal_detectron2-0.7.2-cp310-none-any.whl $(WHEEL)
	@$(BIN)/python -m pip hash $(WHEEL) | grep -q $(DETECTRON2_SHA256) || \
	  { echo "$(WHEEL) is not the file that this study was tested with: its sha256 differs." >&2; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(WHEEL)

detectron2-upstream:
	$(BIN)/python -m pip install --no-deps --no-build-isolation \
	  "git+https://github.com/facebookresearch/detectron2.git@$(DETECTRON2_COMMIT)"

test: setup  ## run the tests
	$(BIN)/python -m pytest -q tests

lab: setup  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

clean:  ## remove runs, generated data and caches; results/ and .venv stay
	rm -rf runs data/shapes-* .pytest_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Trains what is missing, executes the table's notebook if its table changed, and prints the table.
reproduce-table-3: TABLE = 3
reproduce-table-3: setup  ## train and evaluate the rows of Table 3 and print it beside the paper's
	@$(BIN)/python -m bmask run --table $(TABLE) $(RUN_FLAGS); status=$$?; \
	[ $$status -le 1 ] || exit $$status; \
	$(BIN)/python -m bmask table $(TABLE) --profile $(PROFILE) --seeds $(SEEDS) > /dev/null || exit $$?; \
	notebook=$$(basename notebooks/table$(TABLE)_*.ipynb); executed=$(RESULTS)/$$notebook; \
	if [ $$status -eq 0 ] && ! { [ $$executed -nt notebooks/$$notebook ] && \
	    [ $$executed -nt $(RESULTS)/table$(TABLE).md ]; }; then \
	  $(BIN)/papermill notebooks/$$notebook $$executed.tmp.ipynb --no-progress-bar $(NOTEBOOK_FLAGS) && \
	  mv $$executed.tmp.ipynb $$executed || exit $$?; \
	fi; \
	cat $(RESULTS)/table$(TABLE).md; exit $$status
