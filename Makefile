# make test, make bench: everything from a fresh machine with python3 and g++; no other step.
# PYTHON, VENV and TORCH may be given; another TORCH wants another VENV.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
WHEEL_VENV ?= .venv-wheel
WHEEL_TORCH ?= torch==2.13.0
WHEEL_TESTS ?= test_reference.py test_forward.py test_backward.py test_gradcheck.py test_errors.py test_modules.py \
	test_module_tools.py test_lengths.py test_in_place.py test_convert.py test_info.py
JOBS ?= auto
BIN := $(VENV)/bin
BUILD := $(VENV)/.built
SOURCES := setup.py pyproject.toml eca_cuda/_version.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

FORMATTED := $(shell find csrc tests torch-ext -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: all test bench gpu lint format docs links wheel test-wheel hub clean

all: $(BUILD)

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH) "setuptools>=77" wheel "pybind11>=3.0" ninja build ruff mypy clang-format \
		pytest pytest-xdist hypothesis expecttest numpy rich matplotlib timm scikit-learn mkdocs onnx onnxscript onnxruntime pyright
	touch $@

$(BUILD): $(VENV)/.installed $(SOURCES)
	$(BIN)/pip install -v --no-build-isolation --no-deps -e . > $(VENV)/build.log 2>&1 || (cat $(VENV)/build.log; exit 1)
	@grep -h '\[eca_cuda\]' $(VENV)/build.log | sort -u
	touch $@

test: $(BUILD)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

bench: $(BUILD)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# On a machine with a GPU and no network: no environment is made, nothing is installed; docs/gpu.md.
# STEP, BUDGET (seconds), RESUME (results of earlier runs) and DRY=1 may be given; results go to OUT.
OUT ?= results
gpu:
	$(PYTHON) -m benchmarks gpu --out $(OUT) $(if $(STEP),--step $(STEP)) $(if $(BUDGET),--budget $(BUDGET)) \
		$(if $(RESUME),--resume $(RESUME)) $(if $(DRY),--dry)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

docs: $(VENV)/.installed
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

# Links out of the pages; those inside are checked by make test and by make docs.
links:
	$(PYTHON) docs/links.py *.md docs/*.md */README.md tests/emulator/README.md

wheel: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

# The wheel serves every torch >= 2.10: tests of the layers and of convert under another one, with the source tree out
# of sight. timm's layers are skipped: PyPI's torchvision, which timm needs, does not load beside a CPU-only torch.
test-wheel: wheel
	rm -rf build/wheel-test && mkdir -p build/wheel-test && cp -r tests build/wheel-test/
	test -x $(WHEEL_VENV)/bin/pip || $(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/pip install -q $(WHEEL_TORCH) pytest hypothesis expecttest numpy
	$(WHEEL_VENV)/bin/pip install -q --no-deps --force-reinstall dist/eca_cuda-*.whl
	cd build/wheel-test && ../../$(WHEEL_VENV)/bin/python -m pytest -q -p no:cacheprovider $(addprefix tests/,$(WHEEL_TESTS))

# A project of Hugging Face's kernel-builder, to be committed as a repository of its own: docs/install.md.
HUB ?= build/hub
hub:
	rm -rf $(HUB) && mkdir -p $(HUB)
	cp -r build.toml csrc torch-ext LICENSE $(HUB)/
	mv $(HUB)/torch-ext/flake.nix $(HUB)/
	mkdir $(HUB)/torch-ext/eca_cuda && cp eca_cuda/*.py $(HUB)/torch-ext/eca_cuda/

clean:
	rm -rf build dist $(WHEEL_VENV) *.egg-info eca_cuda/_C*.so $(BUILD)
