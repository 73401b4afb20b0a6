# The study's commands. `make help` lists them.
PROFILE ?= cpu
SEEDS ?= 0
DEVICE ?= auto
NUM_GPUS ?= 1
ACCUMULATE ?= 1
JOBS ?= 0
DATA ?=
REUSE ?=
LAUNCHER ?= local
SLURM ?=
VARIANT ?= bmask_rcnn
SEED ?= 0
PUBLISH ?=
export BMASK_PUBLISH = $(PUBLISH)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DETECTRON2 ?= wheel
DETECTRON2_SHA256 = 491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561
DETECTRON2_COMMIT = a59f0563
# Without what it asks for: a backport of Python's own `typing`, and parts of no use here.
CITYSCAPES = cityscapesScripts==2.3.0
WHEEL = $(VENV)/wheel/sal_detectron2-0.7.2-py3-none-any.whl
BIN = $(VENV)/bin
READY = $(VENV)/bmask-$(DETECTRON2).ready
# JupyterLab saves what it shows: copies keep the repository as it is.
LAB = "$(or $(BMASK_OUTPUT),.)/results/local/notebooks"
# Whatever a variable holds reaches the command as one argument.
quoted = '$(subst ','\'',$(1))'
FLAGS = --profile=$(call quoted,$(PROFILE)) --device=$(call quoted,$(DEVICE)) $(if $(DATA),--data=$(call quoted,$(DATA)))
RUN_FLAGS = $(FLAGS) --seeds=$(call quoted,$(SEEDS)) --num-gpus=$(call quoted,$(NUM_GPUS)) \
  --accumulate=$(call quoted,$(ACCUMULATE)) --jobs=$(call quoted,$(JOBS)) $(if $(filter-out 0,$(REUSE)),--reuse) \
  --launcher=$(call quoted,$(LAUNCHER)) $(if $(SLURM),--slurm $(SLURM))

.PHONY: help setup test lab report verify-results benchmark clean submission-coco submission-cityscapes
.DEFAULT_GOAL := help

help:  ## list the targets and variables
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 32
	@echo
	@echo "Variables, with their defaults:"
	@echo "  PROFILE=cpu     smoke, cpu, coco_person, nuclei, gpu, paper or paper_cityscapes: data,"
	@echo "                  backbone, schedule; such as cpu-samedetector for one detector under all mask heads,"
	@echo "                  or paper-batch8 for another number of images a batch (linear scaling rule)"
	@echo "  SEEDS=0         runs of each row, such as 0,1,2"
	@echo "  DEVICE=auto     cpu or cuda"
	@echo "  NUM_GPUS=1      GPUs of one run (with DEVICE=cpu: processes)"
	@echo "  ACCUMULATE=1    parts of each batch that are taken one after the other, for less memory"
	@echo "  JOBS=0          runs at a time; 0: one a core, or one on a GPU"
	@echo "  DATA=           folder of the data set, for coco_person, nuclei, gpu, paper and paper_cityscapes"
	@echo "  REUSE=          1 takes the shipped records instead of training anew"
	@echo "  LAUNCHER=local  slurm makes each run a job of the Slurm cluster that this machine belongs to, and"
	@echo "  SLURM=          has what jobs are submitted with, such as \"partition=gpu time=600 mem=32G\""
	@echo "  VARIANT=bmask_rcnn  the trained model of a submission; SEED=0 its seed"
	@echo "  PUBLISH=        1 writes the shipped results, results/PROFILE, instead of results/local/PROFILE: for maintainers"
	@echo "  DETECTRON2=wheel  upstream compiles detectron2 from GitHub instead"

setup: $(READY)  ## create .venv and install the pinned packages

$(READY): requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed, and $(PYTHON) is another: name one with PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check --no-deps $(CITYSCAPES)
	$(MAKE) --no-print-directory VENV=$(VENV) detectron2-$(DETECTRON2)
	@# Not `pip install -e`, which writes into the repository: it may be read-only.
	@$(BIN)/python -c 'import sys, sysconfig; open(sysconfig.get_path("purelib") + "/bmask.pth", "w").write(sys.argv[1])' "$(CURDIR)"
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

test: setup  ## run the tests, after a look at what imports what
	$(BIN)/lint-imports --no-logo --no-cache
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

lab: setup  ## open JupyterLab on copies of the notebooks, at their table of contents
	mkdir -p $(LAB) && cp -u notebooks/*.ipynb $(LAB)
	$(BIN)/jupyter lab --notebook-dir $(LAB) --LabApp.default_url=/lab/tree/index.ipynb

report: setup  ## build report/index.html, a site of all results that opens without server or network
	@$(BIN)/python -m bmask report

verify-results: setup  ## make the shipped results anew from their records, and fail on any difference
	@$(BIN)/python -m bmask verify

benchmark: setup  ## time training, inference, loading and AP beside detectron2's systems
	@$(BIN)/python -W ignore -m benchmarks.speed --device=$(call quoted,$(DEVICE)) \
	  $(if $(DATA),--data=$(call quoted,$(DATA)))

clean:  ## remove runs, generated data, report and caches; results/, local ones included, and .venv stay
	rm -rf runs data/shapes-* report .pytest_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

reproduce-table-1: ## overall results: backbones and input sizes
reproduce-table-2: ## the state of the art
reproduce-table-3: ## adding the components to Mask R-CNN
reproduce-table-4: ## what the boundary branch learns
reproduce-table-5: ## RoI features for the boundary
reproduce-table-6: ## fusion of mask and boundary features
reproduce-table-7: ## boundary losses
reproduce-table-8: ## computation cost
reproduce-table-9: ## Cityscapes
reproduce-sobel: ## the Sobel mask head, and refined masks
reproduce-gradients: ## what a boundary loss does to a backbone, from ImageNet weights and from scratch
reproduce-release: ## the authors' detectron2 release: PointRend and cascades as well
reproduce-figure-1: ## AP at each IoU threshold
reproduce-figure-2: ## masks of Mask R-CNN and BMask R-CNN (Figs. 2, 3 and 8)
reproduce-figure-5: ## RoI features for the boundary
reproduce-figure-6: ## what each boundary loss does to the boundary
reproduce-figure-7a: ## coarse annotations, precise predictions (Section 4.4)
reproduce-figure-7b: ## the Sobel mask head
reproduce-figure-precise: ## what is gained on coarse and on precise truth, on photographs
reproduce-figure-curves: ## losses and AP during the training
reproduce-all: ## every table and figure, each run once, and a page of them

TABLES = $(addprefix table-,1 2 3 4 5 6 7 8 9) sobel gradients release
FIGURES = $(addprefix figure-,1 2 5 6 7a 7b precise curves)
REPRODUCE = $(addprefix reproduce-,$(TABLES) $(FIGURES) all)
.PHONY: $(REPRODUCE)
$(REPRODUCE): reproduce-%: setup
	@$(BIN)/python -m bmask reproduce $(patsubst table-%,%,$*) $(RUN_FLAGS)

submission-coco: setup  ## detections of VARIANT on COCO test-dev2017, for the evaluation server
	@$(BIN)/python -m bmask submission coco --variant=$(call quoted,$(VARIANT)) --seed=$(call quoted,$(SEED)) $(FLAGS)

submission-cityscapes: setup  ## the same on the test images of Cityscapes
	@$(BIN)/python -m bmask submission cityscapes --variant=$(call quoted,$(VARIANT)) --seed=$(call quoted,$(SEED)) $(FLAGS)
