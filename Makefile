# Every target sets up what it needs in .venv; nothing else has to be installed but Python (3.11 or newer) and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m vos_lightning
STAMP  := $(VENV)/.installed
DATA   ?= data
export VOS_DATA := $(DATA)

.DEFAULT_GOAL := help
.PHONY: help setup demo app train validate evaluate segment predict visualize baselines list results doctor submit show lint \
  format test test-all test-portable test-gpu bench bench-networks lite lite-switches lite-gpu fuzz kills slurm lock audit \
  wandb-sync clean mutate

help: ## show this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'
	@echo
	@echo '  EXP=emvos_davis17        which experiment (make list)'
	@echo '  ARGS="--trainer.devices=8 --trainer.precision=bf16-mixed"   any option of the experiment'
	@echo '  DATA=/path/to/datasets   where DAVIS, COCO ... lie (default: data)'

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; torch is large) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(STAMP) ## install everything into .venv (every target does this by itself)

demo: $(STAMP) ## cut a rabbit out of a clip with the network that ships, then train a small EMVOS on synthetic clips (6 minutes)
	@$(RUN) segment "$$($(BIN)/python -m docs.demo.clip)" --mask docs/demo/masks --output runs/demo --overwrite
	@$(RUN) train emvos_demo $(ARGS)
	@$(RUN) test emvos_demo --baselines $(ARGS)

train: $(STAMP) ## train EXP, or go on where it stopped; EXP=finetune_own DATA=my_videos CHECKPOINT=file fine-tunes on your own
	@test -n "$(EXP)" || { echo 'error: which experiment? make train EXP=emvos_davis17 (make list)' >&2; exit 2; }
	@$(RUN) train $(EXP) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(ARGS)

validate: $(STAMP) ## score EXP's validation videos with its last weights (ARGS=--select=best: the best of its validations)
	@test -n "$(EXP)" || { echo 'error: which experiment? make validate EXP=emvos_davis17 (make list)' >&2; exit 2; }
	@$(RUN) validate $(EXP) $(ARGS)

evaluate: $(STAMP) ## score EXP's test videos with its last weights, or PNGs: TRUTH=dir PREDICTIONS=dir PROTOCOL=davis17
ifdef PREDICTIONS
	@$(RUN) evaluate --truth $(TRUTH) --predictions $(PREDICTIONS) --protocol $(or $(PROTOCOL),davis17) $(ARGS)
else
	@test -n "$(EXP)" || { echo 'error: which experiment? make evaluate EXP=emvos_davis17 (make list), or TRUTH= PREDICTIONS=' >&2; exit 2; }
	@$(RUN) test $(EXP) $(ARGS)
endif

segment: $(STAMP) ## cut objects out of your own: VIDEO="files or folders" [MASK=file-or-folder] [OUTPUT=dir] [CHECKPOINT=file]
	@test -n "$(VIDEO)" || { echo 'error: which video? make segment VIDEO=holiday.mp4 MASK=first_frame.png' >&2; exit 2; }
	@$(RUN) segment $(VIDEO) $(if $(MASK),--mask $(MASK)) --output $(or $(OUTPUT),cut_out) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(ARGS)

predict: $(STAMP) ## segment EXP's videos with its last weights
	@test -n "$(EXP)" || { echo 'error: which experiment? make predict EXP=emvos_davis17' >&2; exit 2; }
	@$(RUN) predict $(EXP) $(ARGS)

app: $(STAMP) ## cut objects out of a video in the browser: VIDEO=file-or-folder (docs/app.md)
	@$(RUN) app $(VIDEO) $(ARGS)

visualize: $(STAMP) ## draw what EXP computes inside: VIDEO=name FRAME=number OUTPUT=dir
	@test -n "$(EXP)" || { echo 'error: which experiment? make visualize EXP=emvos_davis17 VIDEO=name FRAME=number' >&2; exit 2; }
	@$(RUN) visualize $(EXP) --video $(VIDEO) --frame $(FRAME) --output $(or $(OUTPUT),visuals) $(ARGS)

list: $(STAMP) ## list the papers; PAPER=emvos: its experiments and the published results that they reproduce
	@$(RUN) list $(PAPER) $(ARGS)

results: $(STAMP) ## write runs/results.md and results.html: every published row beside what the runs measured
	@$(RUN) results $(ARGS)

doctor: $(STAMP) ## check data sets and proposals in DATA, or those that EXP reads (ARGS=--fix repairs what is safe)
	@$(RUN) doctor $(or $(EXP),$(DATA)) $(ARGS)

submit: $(STAMP) ## zip predictions for a server: SERVER=davis17-testdev PREDICTIONS=dir OUTPUT=file.zip [DATA=its data set]
	@$(RUN) submit --server $(SERVER) --predictions $(PREDICTIONS) --output $(OUTPUT) \
	  $(if $(filter-out default file undefined,$(origin DATA)),--data $(DATA)) $(ARGS)

show: $(STAMP) ## print the composed configuration of EXP
	@$(RUN) show $(EXP) $(ARGS)

format: $(STAMP) ## format the code
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

lint: $(STAMP) ## formatting, lint, types, import contracts, no device strings in the library
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@! grep -rnE '\.cuda\(|"cuda|'"'"'cuda' vos_lightning data_modules --include=*.py || { echo 'error: device string in the library' >&2; exit 1; }

test: $(STAMP) ## the default tests (a few minutes on 2 cores)
	@$(BIN)/python -m pytest -q -m "not slow and not realdata and not gpu" -n 2 --dist worksteal $(ARGS)

test-portable: $(STAMP) ## recorded numbers, with the instruction sets and thread counts of other processors
	@$(BIN)/python -m tests.portable $(ARGS)

test-all: $(STAMP) ## every test; those on real data read VOS_REAL_DATA
	@$(BIN)/python -m pytest -q $(ARGS)

test-gpu: $(STAMP) ## the tests on a CUDA device
	@VOS_TEST_DEVICE=cuda $(BIN)/python -m pytest -q -m "not slow and not realdata" $(ARGS)

bench: $(STAMP) ## speed of the metrics and of `evaluate` beside a plain implementation, and of the training clips
	@$(BIN)/python -m benchmarks.metrics $(ARGS)
	@$(BIN)/python -m benchmarks.evaluate
	@$(BIN)/python -m benchmarks.clips

bench-networks: $(STAMP) ## speed of networks with random weights: EXP="emvos_davis17 pmvos_davis17" ARGS="--objects 1 3"
	@$(RUN) benchmark $(or $(EXP),emvos_davis17 pmvos_davis17) $(ARGS)

lite: $(STAMP) ## train, score and time the small networks of all systems (about 90 minutes on 2 cores), and write their table
	@$(BIN)/python -m benchmarks.lite --record docs/lite_runs.jsonl --table docs/lite.md $(ARGS)

lite-switches: $(STAMP) ## the same with the parts switched off that each paper switches off (about 2 hours on 2 cores)
	@$(BIN)/python -m benchmarks.lite --switches --record docs/lite_runs.jsonl --table docs/lite.md $(ARGS)

lite-gpu: $(STAMP) ## a first look on a GPU in 8 minutes: each small network for a minute, four at a time, and the best one for three
	@$(BIN)/python -m benchmarks.lite --runs runs/lite_gpu --seconds 60 --jobs 4 --untimed --trainer.accelerator=gpu $(ARGS)
	@$(BIN)/python -m benchmarks.lite stcn_lite --runs runs/lite_gpu_long --seconds 180 --untimed --trainer.accelerator=gpu $(ARGS)

fuzz: $(STAMP) ## give 10,000 broken inputs to every command (about 15 minutes); ARGS="--only 17" repeats one (benchmarks/fuzz)
	@$(BIN)/python -m benchmarks.fuzz $(ARGS)

kills: $(STAMP) ## kill a staged training 50 times at random moments and compare its end, bit by bit (about 10 minutes)
	@$(BIN)/python -m benchmarks.kills $(ARGS)

mutate: $(STAMP) ## change the library in one place at a time: do the tests notice? SAMPLE=300, ROOMS="losses"; it goes on where it stopped
	@$(BIN)/python -m tests.mutation $(ROOMS) $(if $(SAMPLE),--sample $(SAMPLE)) $(ARGS)

slurm: $(STAMP) ## submit EXP to SLURM: make slurm EXP=... NODES=1 GPUS=4 TIME=24:00:00; DRY=1 prints the job (docs/clusters.md)
	@test -n "$(EXP)" || { echo 'error: which experiment? make slurm EXP=emvos_davis17 GPUS=4 (make list)' >&2; exit 2; }
	@$(RUN) slurm $(EXP) --nodes $(or $(NODES),1) --gpus $(or $(GPUS),1) --time $(or $(TIME),24:00:00) \
	  $(if $(DRY),--dry-run) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(ARGS)

# Tools of these two are no dependencies: they get an environment of their own, which is removed at the end.
TEMPORARY = folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder" && \
  "$$folder/bin/python" -m pip install --quiet --disable-pip-version-check

lock: ## write constraints.txt anew from pyproject.toml, with hashes; versions stay (ARGS=--upgrade raises them)
	@$(TEMPORARY) uv && "$$folder/bin/uv" pip compile --quiet pyproject.toml --extra dev --extra wandb --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command 'make lock' --output-file constraints.txt $(ARGS)

audit: ## look up the versions in constraints.txt in a list of known vulnerabilities (SERVICE=osv or pypi)
	@$(TEMPORARY) pip-audit && $(PYTHON) .ci/audit "$$folder/bin/pip-audit" constraints.txt $(or $(SERVICE),osv)

wandb-sync: $(STAMP) ## upload runs that were logged offline
	@$(BIN)/wandb sync --include-offline runs/*/wandb/offline-run-*

clean: ## remove caches (runs and .venv stay)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
