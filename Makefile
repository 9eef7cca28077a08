# make demo    SimCLR on handwritten digits, in 3 minutes
# make test    the test suite;  make test-all: with the slow tests;  where a GPU is, then:
# make test-gpu    those for a GPU;  make test-sanitizer: the CUDA kernels under compute-sanitizer
# make test-asan    the CPU kernels under the address sanitizer (gcc)
# make bench   every op against its peers and its floor: measures, writes benchmarks/results/
# make wheel   the sdist, and a wheel for this Python, into dist/
# make docs    the documentation as a site in build/site; a warning is an error
# make lint    style;           make clean: away with all that was built here

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# A change in one of these means that what is installed is no longer this project.
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)

# Tests run side by side, one thread each: nearly all of the time is Python's. They see no GPU, so
# that they are the same everywhere, and can fork.
WORKERS := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
PYTEST := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
TEST_GPU = if nvidia-smi -L 2>/dev/null | grep -q GPU; then $(MAKE) test-gpu; fi

# Threads that wait sleep: measured 7 times as fast where other programs use the same cores.
export OMP_WAIT_POLICY := passive

.PHONY: demo test test-all test-gpu test-sanitizer test-asan bench docs wheel lint clean

demo: .venv/zoo.stamp
	$(BIN)/sslzoo demo

test: .venv/dev.stamp
	$(PYTEST) -m "not slow"
	$(TEST_GPU)

test-all: .venv/dev.stamp
	$(PYTEST)
	$(TEST_GPU)

test-gpu: .venv/dev.stamp
	$(BIN)/python -m pytest -m gpu

# Out-of-bounds and misaligned accesses, races in shared memory, reads of memory never written.
test-sanitizer: .venv/dev.stamp
	for tool in memcheck racecheck initcheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(BIN)/python -m pytest -m gpu tests/ops/test_gpu_masking.py tests/ops/test_gpu_key_queue.py \
	    || exit 1; \
	done

# A copy of the package with kernels that check every access; without nvcc, whose part has no such
# build. Python itself leaks at exit, so leaks are not looked for. setuptools compiles C++ with
# CXXFLAGS, older ones with CFLAGS: that the kernels have the checks is looked up. Tests of other
# backends check nothing here and are left out. The report of a bad access must not be captured,
# or it ends with the process: it names the line, and pytest the test. 6 minutes of one core.
ASAN_TESTS ?= tests/ops/test_bad_input.py tests/ops/test_cpu_info_nce.py \
  tests/ops/test_cpu_nt_xent.py tests/ops/test_cpu_tiles.py tests/ops/test_key_queue.py \
  tests/ops/test_contrastive_edges.py tests/ops/test_gather_patches.py \
  tests/ops/test_logit_blocks.py tests/ops/test_cpu_dino.py tests/ops/test_koleo.py \
  tests/ops/test_sinkhorn_knopp.py tests/ops/test_restore_tokens.py \
  tests/ops/test_color_attention_agreement.py tests/ops/test_augment.py tests/ops/test_fuzz.py
ASAN_CASES := "not triton and not chunked and not [reference and not -reference and not compile \
  and not memory"
ASAN_FLAGS := -fsanitize=address -fno-omit-frame-pointer -g
test-asan: .venv/dev.stamp
	rm -rf build/asan && mkdir -p build/asan && cp -r sslops build/asan/
	find build/asan -name '*.so' -delete
	env -u CUDA_HOME -u CUDA_PATH PATH=/usr/bin:/bin CFLAGS="$(ASAN_FLAGS)" \
	  CXXFLAGS="$(ASAN_FLAGS)" LDFLAGS=-fsanitize=address $(abspath $(BIN))/python setup.py build_ext \
	  --build-lib build/asan --build-temp build/asan-objects
	grep -q __asan_report build/asan/sslops/_C*.so
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) \
	  $$(gcc -print-file-name=libstdc++.so)" $(PYTEST) --capture=sys \
	  -p no:cacheprovider -o pythonpath="build/asan tests/ops" -k $(ASAN_CASES) $(ASAN_TESTS)

bench: .venv/bench.stamp
	$(BIN)/python benchmarks/run.py --sweep
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/pages.py

# Built in an environment of its own, without torch. With nvcc found: the CUDA kernels, too.
wheel: | $(BIN)/python
	$(PIP) build
	$(BIN)/python -m build

docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/zoo.stamp: $(SOURCES) | $(BIN)/python
	@echo "Installing into .venv and compiling: a few minutes the first time."
	$(PIP) -e '.[zoo]'
	touch $@

.venv/dev.stamp: $(SOURCES) | $(BIN)/python
	@echo "Installing into .venv and compiling: a few minutes the first time."
	$(PIP) -e '.[zoo,dev]'
	touch .venv/zoo.stamp .venv/docs.stamp $@

.venv/bench.stamp: $(SOURCES) | $(BIN)/python
	@echo "Installing the peers into .venv and compiling: some minutes the first time."
	$(PIP) -e '.[zoo,bench]'
	touch .venv/zoo.stamp $@

.venv/docs.stamp: $(SOURCES) | $(BIN)/python
	@echo "Installing into .venv and compiling: a few minutes the first time."
	$(PIP) -e '.[docs]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find sslops -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
