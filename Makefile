# `make` alone lists what there is. The first target that needs it creates .venv and installs the project there.

PYTHON ?= python3
VENV ?= .venv
CLIP ?= demo/clip.mp4
PIP_ARGS ?=
PYTEST_ARGS ?=
PYTEST_JOBS ?= auto

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.affectrt-installed
STARTER := runs/starter.affect
# Whatever changes the starter bundle: the weights with their card, and the code that turns them into graphs.
STARTER_SOURCES := $(wildcard training/affectrt_training/recipes/starter/weights/*) \
  $(shell find export training/affectrt_training/models training/affectrt_training/encoders -name '*.py')
NATIVE_SOURCES := pyproject.toml CMakeLists.txt $(shell find kernels/csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test test-arm test-sanitize lint lint-python lint-wheel lint-cpp sanitized docs bench clean
.DELETE_ON_ERROR:

help:
	@echo 'AffectRT. Targets (each installs what it needs into $(VENV) first):'
	@echo
	@echo '  make demo              how the person in demo/clip.mp4 feels, second by second'
	@echo '  make demo CLIP=FILE    the same for your own video, audio or text file; FILE'"'"'s sibling .srt or'
	@echo '                         .vtt, if there is one, is taken as the transcript'
	@echo '  make test              all tests       (PYTEST_ARGS="-k bundle" to choose, PYTEST_JOBS=0 for one process)'
	@echo '  make test-arm          the C++ kernels on 64-bit Arm, under emulation'
	@echo '  make test-sanitize     the C++ kernels under the address and undefined-behaviour sanitizers'
	@echo '  make lint              ruff, mypy --strict, C++ with warnings as errors'
	@echo '  make docs              docs/cli.md anew from what the commands say of themselves'
	@echo '  make bench             the benchmarks behind every figure on speed'
	@echo '  make clean             removes $(VENV), build/ and runs/starter.affect'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter of a new $(VENV); PIP_ARGS goes to pip install.'

demo: $(STARTER)
	@clip='$(CLIP)'; set --; \
	for ending in srt vtt; do \
	  transcript="$${clip%.*}.$$ending"; \
	  if [ -f "$$transcript" ] && [ "$$transcript" != "$$clip" ]; then set -- --transcript "$$transcript"; break; fi; \
	done; \
	echo "$(BIN)/affectrt analyze $$clip --bundle $(STARTER) $$*"; \
	$(BIN)/affectrt analyze "$$clip" --bundle $(STARTER) "$$@"

# One thread: the tests' tensors are too small to share, and spinning threads slow a busy machine down.
# A process for each processor, up to 8: each loads all libraries. A module's tests stay together, with its fixtures.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(PYTEST_JOBS) --maxprocesses 8 \
	  --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

test-arm: $(INSTALLED)
	$(BIN)/pytest -s tests/kernels/test_cpp.py -k arm

test-sanitize: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -s tests/kernels/test_cpp.py -k sanitizers

# The parts can run at once: make -j2 lint.
lint: lint-wheel lint-python lint-cpp

lint-python: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The wheel holds the module. Pip builds it from nothing that is installed, so that it needn't wait for that.
lint-wheel: $(BIN)/python
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/lint/wheel \
	  --config-settings build-dir=build/lint/cmake --config-settings cmake.define.AFFECTRT_WERROR=ON .

# The test program is compiled where tests/kernels/test_cpp.py then finds it made.
lint-cpp: $(INSTALLED)
	$(BIN)/cmake -S . -B build/tests/native \
	  -DAFFECTRT_MODULE=OFF -DAFFECTRT_TESTS=ON -DAFFECTRT_WERROR=ON >/dev/null
	MAKEFLAGS= $(BIN)/cmake --build build/tests/native --parallel $$(nproc) >/dev/null

# What tests/kernels/test_cpp.py compiles for longest, while mypy leaves a processor without work.
sanitized: lint-cpp
	$(BIN)/cmake -S . -B build/tests/sanitize -DAFFECTRT_TESTS=ON -DAFFECTRT_SANITIZE=ON \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" \
	  -DPython_EXECUTABLE="$$($(BIN)/python -c 'import sys; print(sys.executable)')" >/dev/null
	MAKEFLAGS= $(BIN)/cmake --build build/tests/sanitize --parallel $$(nproc) >/dev/null

docs: $(INSTALLED)
	$(BIN)/python docs/make_cli.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.text_int8

clean:
	rm -rf $(VENV) build $(STARTER)

$(STARTER): $(INSTALLED) $(STARTER_SOURCES)
	@mkdir -p $(@D)
	$(BIN)/affectrt export starter -o $@

$(INSTALLED): $(BIN)/python $(NATIVE_SOURCES)
	$(BIN)/pip install $(PIP_ARGS) --editable '.[dev]'
	@touch $@

# What pip cannot bring is asked for here, by the name of its Debian package; cmake and ninja come through pip.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'AffectRT needs Python 3.10 or newer, and $(PYTHON) is not there: apt-get install python3'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "AffectRT needs Python 3.10 or newer, got $$($(PYTHON) --version); name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo '$(PYTHON) cannot create virtual environments: apt-get install python3-venv'; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || \
	  { echo 'The C++ extension needs the headers of $(PYTHON): apt-get install python3-dev'; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo 'The C++ extension needs a C++17 compiler: apt-get install g++'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
