# `make demo` and `make test` set up their own environment; a second call reuses it.
# With a torch that is already installed: make demo PYTHON=/path/to/its/python

PYTHON ?=
# The first that runs and is new enough; a name on the path may be a shim for a Python that is not there.
BASE := $(or $(PYTHON),$(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$python && break; done))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := $(VENV)/constraints.txt

.PHONY: demo test docs lint types contracts pytest compat dist coverage consumers slow gpu robust clean

demo: $(VENV)/.run
	$(BIN)/batchopt demo

test: lint types contracts pytest compat

# The pages as a site in out/site/: open out/site/index.html, which needs no server and no network
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python docs/scripts/check_site.py out/site

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

# Two workers of one thread each. The tests of a file, which share what takes long to make, are in one of them.
# What is compiled is kept, whatever the shell says: each worker, and each process of a test, would compile it anew.
WORKERS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

pytest: $(VENV)/.dev
	$(WORKERS) --durations=10

# The same tests, a quarter slower: fails where less than 90 % of the package is run.
coverage: $(VENV)/.dev
	rm -f .coverage .coverage.*
	$(WORKERS) --cov --cov-report=term:skip-covered

# The oldest Optuna that is supported, in front of the newest: what depends on it (constraints, attributes, storages, names).
compat: $(VENV)/optuna-4.8
	PYTHONPATH=$(VENV)/optuna-4.8 $(WORKERS) -m "optuna and not slow" \
		$(addprefix tests/search/test_,good_citizen.py naming.py odd_studies.py pruner.py settings.py)

# Wheel and sdist, looked into, installed into empty environments of every Python that is supported and found, and used.
# In those of .venv's Python its torch is seen; VERSIONS=own tries no other, VERSIONS="3.12 3.13" these.
VERSIONS := 3.11 3.12 3.13
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python release/contents.py dist
	$(BIN)/python release/install.py dist --versions $(VERSIONS)

# Frameworks that cannot share an environment, each in front of ours, by as much of it as the tests touch.
ALONE := $(PIP) install --quiet --upgrade --no-deps --target $(VENV)/consumers
consumers: $(VENV)/.dev
	$(ALONE)/megatron-0.16 megatron-core==0.16.1
	$(ALONE)/megatron-0.19 --ignore-requires-python --python-version 3.12 --only-binary=:all: \
		--platform manylinux_2_28_x86_64 megatron-core==0.19.2
	$(ALONE)/olmo ai2-olmo-core==3.0.0 cached-path google-cloud-storage google-auth google-api-core google-cloud-core \
		google-resumable-media google-crc32c googleapis-common-protos protobuf proto-plus requests urllib3 certifi \
		cryptography cffi pycparser boto3 botocore s3transfer jmespath python-dateutil dataclass-extensions bettermap dill
	$(ALONE)/levanter --pre marin-levanter==0.2.20.dev202606180959
	$(ALONE)/deepspeed deepspeed==0.19.8 hjson einops msgpack
	for folder in $(VENV)/consumers/*; do \
		echo $$folder; PYTHONPATH=$$folder $(BIN)/pytest -q -rs -m "slow or not slow" \
		tests/schedules/exporters/test_consumers.py tests/schedules/exporters/test_megatron.py || exit 1; done

slow: $(VENV)/.dev
	$(BIN)/pytest -q -m slow

gpu: $(VENV)/.dev
	$(BIN)/pytest -q -m gpu

# All tests on the arithmetic of other processors, with one thread and with two, and while all cores are busy.
robust: $(VENV)/.dev
	tests/robust.sh $(BIN)/pytest

# torch comes first: what depends on it would pull in the newest CUDA build.
# With PYTHON, the packages beside its torch are seen, and what is pinned here and differs is installed in front of them.
$(VENV)/.base: constraints.txt
	@test -n "$(BASE)" || { echo "batchopt needs Python 3.11 or later, and found none: make PYTHON=/path/to/python"; exit 1; }
	@echo "Making an environment in $(VENV)/, once, with $$($(BASE) --version)."
	@$(BASE) -m venv $(VENV)
ifeq ($(PYTHON),)
	@cp constraints.txt $(PINS)
	@echo "Installing torch, the largest part: 200 MB as a CPU build, several GB as a CUDA build."
	@$(PIP) install --constraint $(PINS) torch
else
	@$(PYTHON) -c 'import torch' || { echo "$(PYTHON) has no torch: leave PYTHON out, or install torch there"; exit 1; }
	@grep -v '^torch==' constraints.txt > $(PINS)
	@$(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
		> $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_another_python.pth
endif
	@touch $@

$(VENV)/.run: $(VENV)/.base pyproject.toml
	@echo "Installing batchopt and what it needs beside torch: about half a minute."
	@$(PIP) install --quiet --constraint $(PINS) --editable .
	@touch $@

$(VENV)/optuna-4.8: $(VENV)/.dev
	@echo "Installing Optuna 4.8."
	@$(PIP) install --quiet --no-deps --upgrade --target $@ optuna==4.8.0
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing what the tests need: about a minute."
	@$(PIP) install --quiet --constraint $(PINS) --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	@echo "Installing what the documentation needs."
	@$(PIP) install --quiet --constraint $(PINS) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) out dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
