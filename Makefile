# boxtune: every target installs what it needs first. `make help` lists them.
RECIPE ?= tiny_nutrition_qlora
OVERLAY ?=
DATA ?=
MODEL ?= Qwen/Qwen2.5-VL-3B-Instruct
ARGS ?=

comma := ,
RUN ?= runs/$(RECIPE)$(if $(OVERLAY),-$(subst $(comma),-,$(OVERLAY)))
CKPT ?= $(RUN)/final

VENV ?= .venv
PYTHON := $(VENV)/bin/python
# Several GPUs: make train RECIPE=nutrition_qlora LAUNCH=".venv/bin/accelerate launch --config_file recipes/accelerate/ddp.yaml"
LAUNCH ?= $(PYTHON)
# Several processes that are told to stop finish their step and save a checkpoint; torch would give them 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT ?= 600
RECIPE_ARGS = --config $(RECIPE) $(if $(OVERLAY),--overlay $(OVERLAY)) --output_dir $(RUN) $(ARGS)

.PHONY: help train recipe check eval merge benchmark test quality format install clean
.DEFAULT_GOAL := help

help: ## list the targets
	@echo "make TARGET [RECIPE=$(RECIPE)] [OVERLAY=quality,small_gpu] [ARGS=\"--learning_rate 2e-4\"] [RUN=runs/NAME]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "recipes:  $(basename $(notdir $(wildcard recipes/*.yaml)))"
	@echo "overlays: $(basename $(notdir $(wildcard recipes/overlays/*.yaml)))"

train: $(VENV)/.base ## train RECIPE, compare it with its base on the test split, merge it
	$(LAUNCH) train_sft.py $(RECIPE_ARGS)
	@set -e; if [ -f $(RUN)/final/adapter_config.json ]; then set -x; \
		$(PYTHON) evaluate.py --ckpt $(RUN)/final --base; \
		$(PYTHON) merge_adapter.py --ckpt $(RUN)/final --out $(RUN)/final_merged --overwrite; \
	else set -x; \
		$(PYTHON) evaluate.py --ckpt $(RUN)/final; \
	fi

recipe: $(VENV)/.base ## write recipes/NAME.yaml for the prepared data set DATA=data/NAME and MODEL=id
	@test -n "$(DATA)" || { echo "error: name the prepared data: make recipe DATA=data/NAME"; exit 2; }
	$(PYTHON) -m data_prep recipe $(DATA) --model $(MODEL) $(ARGS)

check: $(VENV)/.base ## decode what RECIPE would supervise back to boxes, and draw it, before training
	$(PYTHON) check_recipe.py $(RECIPE_ARGS)

eval: $(VENV)/.base ## evaluate RECIPE's last run, or CKPT=dir
	$(PYTHON) evaluate.py --ckpt $(CKPT) $(ARGS)

merge: $(VENV)/.base ## merge RECIPE's last run, or CKPT=dir, into one bf16 model and verify it
	$(PYTHON) merge_adapter.py --ckpt $(CKPT) $(ARGS)

benchmark: $(VENV)/.base ## measure what docs/results.md reports and is not measured yet, and write it
	$(PYTHON) -m benchmarks.run $(ARGS)

test: $(VENV)/.dev ## run all tests
	$(PYTHON) -m pytest $(ARGS)

quality: $(VENV)/.dev ## check format and lint
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(VENV)/.dev ## format and mend what the linter can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

install: $(VENV)/.base ## set up .venv and nothing else

clean: ## remove the environment and caches; data/ and runs/ stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: boxtune needs Python 3.11 or later; python3 is $$(python3 --version). Put a later one first in PATH."; exit 2; }
	python3 -m venv $(VENV)
	@touch $@

$(VENV)/.base: $(VENV)/.python pyproject.toml constraints.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
