# make prune   train, prune and fine-tune the embedded example        make test   all tests
# make install the environment alone       make lint   style and types       make bench  benchmarks       make docs  site/
# make sanitize  the C++ tests under ThreadSanitizer, AddressSanitizer and UBSan; the tests of the ops under the latter two
# make fuzz      readers of files, run folders and settings against random bad input; EXAMPLES=20000 takes about 20 minutes
# make soak      random networks, methods and ops for MINUTES=30, none of which may fail, nor the memory grow
# make gpu-check  on a machine with a GPU: build, tests, compute-sanitizer and benchmarks, within ten minutes
#
# Each target does all set-up it needs, and only once: the environment again when requirements.lock changes, the native
# library again when its sources do. SRR_BUILD=cpu|cuda|none chooses what is built (default auto), PYTHON the interpreter.

PYTHON ?= python3
SRR_BUILD ?= auto
ARGS ?=
JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
BUILT := $(VENV)/.built-$(SRR_BUILD)
CXX_FILES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cuh csrc/*/*.cu)
NATIVE := $(filter-out csrc/tests/%,$(CXX_FILES))
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
# A machine for gpu-check may have torch and nvcc, but no network to make an environment from.
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: install prune test pytest ctest sanitize fuzz soak lint bench gpu-check docs clean
.DELETE_ON_ERROR:

install: $(BUILT)

$(LOCKED): requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

# One stamp at a time: a build in another mode replaces the library.
$(BUILT): $(LOCKED) setup.py pyproject.toml $(NATIVE)
	rm -f $(VENV)/.built-*
	SRR_BUILD=$(SRR_BUILD) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --editable .
	touch $@

prune: $(BUILT)
	$(BIN)/python -m srr_ext.prune $(ARGS)

test: ctest pytest

# One worker per core, so each computes with one thread.
pytest: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

# The C++ core alone, and the CUDA kernels on threads of the CPU: needs a compiler, but no torch.
ctest: $(LOCKED)
	$(CMAKE) -S . -B build/core -DCMAKE_BUILD_TYPE=Release
	$(BIN)/cmake --build build/core
	$(BIN)/ctest --test-dir build/core --output-on-failure

sanitize: $(LOCKED)
	for kind in thread address; do \
		$(CMAKE) -S . -B build/$$kind -DCMAKE_BUILD_TYPE=Release -DSRR_SANITIZE=$$kind && \
		$(BIN)/cmake --build build/$$kind && \
		$(BIN)/ctest --test-dir build/$$kind --output-on-failure --parallel 2 || exit 1; \
	done
	$(BIN)/python python_tests/sanitized_ops.py

# A failure prints the example; an @example of it then belongs into the test.
fuzz: $(BUILT)
	SRR_FUZZ=$(or $(EXAMPLES),2000) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal \
		python_tests/test_fuzz_readers.py python_tests/test_fuzz_folders.py $(ARGS)

# A job that failed is done again, alone, with SEED=12345.
soak: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python python_tests/soak.py $(if $(SEED),--repeat $(SEED),--minutes $(or $(MINUTES),30) \
		--output $(or $(OUTPUT),benchmarks/results/soak-cpu.json)) $(ARGS)

lint: $(LOCKED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

bench: $(BUILT)
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

# WHEELS=folder: wheels of the Python packages that the machine lacks, used for this run alone.
gpu-check:
	$(GPU_PYTHON) benchmarks/gpu_check.py $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)

docs: $(LOCKED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site *.egg-info srr_ext/*.so srr_ext/_build_config.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(VENV)/.built-*
