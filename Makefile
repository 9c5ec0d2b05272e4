# boxtune: every target first installs what it needs. `make help` lists the targets.
RECIPE ?= tiny_nutrition_qlora
OVERLAY ?=
DATA ?=
MODEL ?= Qwen/Qwen2.5-VL-3B-Instruct
GPU_GB ?= 24
SWEEP ?= tiny_placement
ARGS ?=

comma := ,
RUN ?= runs/$(RECIPE)$(if $(OVERLAY),-$(subst $(comma),-,$(OVERLAY)))
CKPT ?= $(RUN)/final

VENV ?= .venv
PYTHON := $(VENV)/bin/python
VLLM ?= .venv-vllm
LABEL_STUDIO ?= .venv-label-studio
# Several GPUs: make train RECIPE=nutrition_qlora ACCELERATE=ddp, or another file of recipes/accelerate
ACCELERATE ?=
LAUNCH ?= $(if $(ACCELERATE),$(VENV)/bin/accelerate launch --config_file recipes/accelerate/$(ACCELERATE).yaml,$(PYTHON))
# On a stop signal, several training processes finish their step and save a checkpoint. torch would kill them after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT ?= 600
RECIPE_ARGS = --config $(RECIPE) $(if $(OVERLAY),--overlay $(OVERLAY)) --output_dir $(RUN) $(ARGS)

.PHONY: help train recipe check plan eval merge serve sweep benchmark test test-vllm test-label-studio mutants quality format install clean
.DEFAULT_GOAL := help

help: ## list the targets
	@echo "make TARGET [RECIPE=$(RECIPE)] [OVERLAY=quality,small_gpu] [ARGS=\"--learning_rate 2e-4\"] [RUN=runs/NAME]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "recipes:  $(basename $(notdir $(wildcard recipes/*.yaml)))"
	@echo "overlays: $(basename $(notdir $(wildcard recipes/overlays/*.yaml)))"
	@echo "sweeps:   $(basename $(notdir $(wildcard recipes/sweeps/*.yaml)))"

train: $(VENV)/.base ## train RECIPE, compare it with its base model on the test split, and merge it
	$(LAUNCH) train_sft.py $(RECIPE_ARGS)
	@set -e; if [ -f $(RUN)/final/adapter_config.json ]; then set -x; \
		$(PYTHON) evaluate.py --ckpt $(RUN)/final --base --guardrails recipe; \
		$(PYTHON) merge_adapter.py --ckpt $(RUN)/final --out $(RUN)/final_merged --overwrite; \
	else set -x; \
		$(PYTHON) evaluate.py --ckpt $(RUN)/final; \
	fi

recipe: $(VENV)/.base ## write recipes/NAME.yaml for the prepared dataset DATA=data/NAME, MODEL=id and a GPU of GPU_GB=24
	@test -n "$(DATA)" || { echo "error: give the prepared dataset: make recipe DATA=data/NAME"; exit 2; }
	$(PYTHON) -m data_prep recipe $(DATA) --model $(MODEL) --gpu-gb $(GPU_GB) $(ARGS)

check: $(VENV)/.base ## before training: decode the supervised tokens of RECIPE back to boxes and draw them
	$(PYTHON) check_recipe.py $(RECIPE_ARGS)

plan: $(VENV)/.base ## the GPU memory that RECIPE needs, and what would make it fit into GPU_GB=24
	$(PYTHON) -m boxtune.training.memory_plan --gpu_gb $(GPU_GB) $(RECIPE_ARGS)

eval: $(VENV)/.base ## evaluate the last run of RECIPE, or CKPT=dir
	$(PYTHON) evaluate.py --ckpt $(CKPT) $(ARGS)

merge: $(VENV)/.base ## merge the last run of RECIPE, or CKPT=dir, into one bf16 model and verify it
	$(PYTHON) merge_adapter.py --ckpt $(CKPT) $(ARGS)

serve: $(VENV)/.serve ## serve the last run of RECIPE, or CKPT=dir, over HTTP with a page at http://127.0.0.1:8080
	$(PYTHON) serve.py --ckpt $(CKPT) $(ARGS)

sweep: $(VENV)/.base ## run SWEEP=placement (or tiny_placement, rank_ladder): each run trained and evaluated, ARGS="--only A1,B2 --seeds 3"
	$(PYTHON) sweep.py $(SWEEP) $(ARGS)

benchmark: $(VENV)/.base ## run the benchmarks of docs/results.md that have no result yet, and write the page
	$(PYTHON) -m benchmarks.run $(ARGS)

test: $(VENV)/.dev ## run all tests
	$(PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-vllm: $(VENV)/.dev $(VLLM)/.ready ## compare a real vLLM with generation here; installs it for the CPU in .venv-vllm (6 GB)
	BOXTUNE_VLLM=$(abspath $(VLLM))/bin/vllm $(PYTHON) -m pytest tests/inference/test_vllm.py $(ARGS)

$(VLLM)/.ready: $(VENV)/.dev benchmarks/vllm_environment.py
	$(PYTHON) -m benchmarks.vllm_environment $(VLLM)
	@touch $@

test-label-studio: $(VENV)/.dev $(LABEL_STUDIO)/.ready ## let a real Label Studio ask serve.py; installs it in .venv-label-studio
	BOXTUNE_LABEL_STUDIO=$(abspath $(LABEL_STUDIO))/bin/label-studio $(PYTHON) -m pytest tests/serving/test_label_studio_server.py $(ARGS)

$(LABEL_STUDIO)/.ready:
	python3 -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/pip install -q "label-studio>=1.23,<2"
	@touch $@

mutants: $(VENV)/.dev ## make small wrong changes to the packages without torch and see whether a test fails
	$(PYTHON) -m benchmarks.mutants $(ARGS)

quality: $(VENV)/.dev ## check format, lint, import rules and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

format: $(VENV)/.dev ## format, and fix what the linter can fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

install: $(VENV)/.base ## create .venv

clean: ## remove environments and caches; keep data/ and runs/
	rm -rf $(VENV) $(VLLM) $(LABEL_STUDIO) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis

$(VENV)/.python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: boxtune needs Python 3.11 or later, but python3 is $$(python3 --version). Put a newer one first in PATH."; exit 2; }
	python3 -m venv $(VENV)
	@touch $@

$(VENV)/.base: $(VENV)/.python pyproject.toml constraints.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.serve: $(VENV)/.base
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[serve]"
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
