# Every target sets up what it needs: .venv in this folder, pinned packages, the compiled extension.
#
#   make distill   distil a small student from teacher traces, evaluate it, write a report
#   make test      the CPU test suite            make lint    ruff, mypy, clang-format
#   make bench     benchmarks against peers      make clean   remove the environment and build products
#
# PYTHON=python3.12       another interpreter
# PIP_FLAGS="..."         extra flags of pip install, e.g. --extra-index-url https://download.pytorch.org/whl/cpu
# RECIPE=..., ARGS="..."  another recipe, dotted overrides (make distill ARGS="train.tokens=200000")

PYTHON ?= python3
VENV := .venv
PIP_FLAGS ?=
RECIPE ?= training/recipes/kata.yaml
ARGS ?=
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: distill test lint bench clean
.DELETE_ON_ERROR:

$(INSTALLED): pyproject.toml setup.py constraints.txt $(SOURCES)
	@echo "== set-up: .venv, pinned packages, compiled extension"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch numpy
	@$(RUN) -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	@$(RUN) -c "import structloss; print('   structloss', structloss.__version__, '| compiled extension:', structloss.has_extension())"
	@touch $@

distill: $(INSTALLED)
	@$(RUN) -m training distill $(RECIPE) $(ARGS)

test: $(INSTALLED)
	@$(RUN) -m pytest $(ARGS)

lint: $(INSTALLED)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/clang-format --dry-run --Werror $(SOURCES)

bench: $(INSTALLED)
	@$(RUN) -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info structloss/*.so
