# make test, make bench: everything from a fresh machine with python3 and g++; no other step.
# VENV, TORCH and PYTHON may be given: make test TORCH="torch==2.13.0"
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
BIN := $(VENV)/bin
BUILD := $(VENV)/.built
SOURCES := setup.py pyproject.toml eca_cuda/_version.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: all test bench lint format wheel clean

all: $(BUILD)

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q "setuptools>=77" wheel "pybind11>=3.0" ninja build ruff mypy clang-format \
		pytest hypothesis expecttest numpy rich matplotlib timm scikit-learn
	touch $@

$(BUILD): $(VENV)/.installed $(SOURCES)
	$(BIN)/pip install -v --no-build-isolation --no-deps -e . > $(VENV)/build.log 2>&1 || (cat $(VENV)/build.log; exit 1)
	@grep -h '\[eca_cuda\]' $(VENV)/build.log | sort -u
	touch $@

test: $(BUILD)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(BUILD)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter csrc/%,$(SOURCES))

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter csrc/%,$(SOURCES))

wheel: $(VENV)/.installed
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist *.egg-info eca_cuda/_C*.so $(BUILD)
