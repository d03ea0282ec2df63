# Two commands set everything up and run: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NVCC ?= $(or $(wildcard $(CUDA_HOME)/bin/nvcc),$(shell command -v nvcc))
CUDA_ARCHS ?= 80 90

CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
CPP_TESTS := $(wildcard tests/standalone/*.cpp tests/standalone/*.h tests/standalone/*/*.h tests/standalone/*/*/*.h)
CUDA_KERNELS := $(wildcard csrc/cuda/*.cu)
CUDA_GLUE := $(wildcard csrc/cuda/*.cpp)
CUDA_FLAGS = --threads 0 --expt-relaxed-constexpr $(foreach arch,$(CUDA_ARCHS),-gencode arch=compute_$(arch),code=sm_$(arch)) \
  -D__CUDA_NO_HALF_OPERATORS__ -D__CUDA_NO_HALF_CONVERSIONS__ -D__CUDA_NO_BFLOAT16_CONVERSIONS__ -D__CUDA_NO_HALF2_OPERATORS__
OUT ?= out
# The CPU engine and the window kernels without torch, against plain loops.
STANDALONE := $(wildcard csrc/cpu/conv_*.cpp csrc/cpu/window_*.cpp) csrc/cpu/isa.cpp
STANDALONE_FLAGS := -std=c++17 -fno-math-errno -fno-trapping-math -Itests/standalone
CASES ?= 1000
AARCH64 ?= aarch64-linux-gnu-g++
OLDEST := .venv-oldest
OLDEST_TORCH := torch==2.11.0 setuptools>=77,<82

.PHONY: help demo test test-oldest sanitize aarch64 bench lint format build cuda-check dist clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.built  ## train LeNet-5 of explicit layers on scanned digits, and look at its matrices
	$(BIN)/python examples/digits.py --out $(OUT)

test: $(VENV)/.built  ## run all tests and doctests
	$(BIN)/python -m pytest -q -n 2

# A wheel, installed outside this folder: the extension built in place belongs to another torch.
test-oldest: $(OLDEST)/.installed  ## run the tests with the oldest torch that the package accepts
	rm -rf $(OLDEST)/dist
	$(OLDEST)/bin/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir $(OLDEST)/dist .
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --force-reinstall $(OLDEST)/dist/*.whl
	cd tests && ../$(OLDEST)/bin/pytest -q -n 2 .

sanitize: $(addprefix build/standalone/sanitized/,engine windows)  ## run the CPU kernels on random geometries under AddressSanitizer and UBSan
	@set -e; for isa in baseline avx2 avx512 avx512_bf16 avx512_amx; do TORCH_CONVARITH_ISA=$$isa $< $(CASES); done
	@set -e; for isa in baseline avx2 avx512; do TORCH_CONVARITH_ISA=$$isa $(word 2,$^) $(CASES); done

aarch64: build/standalone/aarch64/engine  ## the same, without sanitizers, on an emulated ARM; needs g++-aarch64-linux-gnu, qemu-user
	qemu-aarch64 $< $(CASES)

LAYERS = $(BIN)/python benchmarks/run.py --suite layers transposed
bench: $(VENV)/.built  ## measure the operators against torch's own
	$(BIN)/python benchmarks/overhead.py --out $(OUT)/overhead.json
	$(LAYERS) --seconds 0.6 --rounds 9 --out $(OUT)/layers.json
	$(LAYERS) --threads 1 --out $(OUT)/layers_1_thread.json
	$(LAYERS) --dtype bfloat16 --out $(OUT)/layers_bfloat16.json
	$(LAYERS) --dtype float16 --seconds 0.3 --rounds 3 --out $(OUT)/layers_float16.json
	$(LAYERS) --channels-last --out $(OUT)/layers_channels_last.json
	$(LAYERS) --dtype bfloat16 --channels-last --out $(OUT)/layers_bfloat16_channels_last.json
	$(BIN)/python benchmarks/run.py --suite networks --seconds 0.12 --out $(OUT)/networks.json
	$(BIN)/python benchmarks/run.py --suite networks --threads 1 --seconds 0.12 --out $(OUT)/networks_1_thread.json
	$(BIN)/python benchmarks/run.py --suite lenet --passes forward --backends torch ours ours:matrix unfold csr scipy assemble copy_csr \
	  --seconds 0.5 --out $(OUT)/matrix.json
	$(BIN)/python benchmarks/models.py --seconds 3 --out $(OUT)/models.json
	$(BIN)/python benchmarks/pooling.py --out $(OUT)/pooling.json
	$(BIN)/python benchmarks/memory.py --out $(OUT)/memory.json
	$(BIN)/python benchmarks/report.py $(OUT)/*.json --summary

lint: $(VENV)/.installed  ## ruff, mypy and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(CPP_TESTS)

format: $(VENV)/.installed  ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(CPP_TESTS)

build: $(VENV)/.built  ## build the extension in place

# As setup.py would, but with warnings as errors, and nothing kept. The glue includes torch's headers, whose own CUDA
# configuration only a CUDA build of torch has.
cuda-check: $(VENV)/.installed  ## compile CUDA sources and their glue; needs nvcc, but neither a GPU nor a torch with CUDA
	@test -n "$(NVCC)" || { echo "cuda-check: no nvcc on PATH and none under CUDA_HOME" >&2; exit 2; }
	@set -e; \
	includes="$$($(BIN)/python -c "from torch.utils.cpp_extension import include_paths as i; print(*('-isystem ' + p for p in i()))")"; \
	check() { echo "nvcc $$2"; "$(NVCC)" -std=c++20 -Werror all-warnings -Xcompiler -Wall,-Wextra,-Wno-unused-parameter,-Werror \
	  "$$@" -o /dev/null; }; \
	for source in $(CUDA_KERNELS); do check -c $$source -O3 $(CUDA_FLAGS); done; \
	for source in $(CUDA_GLUE); do check -c $$source -DC10_CUDA_NO_CMAKE_CONFIGURE_FILE $$includes; done

dist: $(VENV)/.installed  ## build the sdist, and a wheel from that sdist
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:  ## remove everything that the targets above made
	rm -rf $(VENV) $(OLDEST) build dist out *.egg-info torch_convarith/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache

.SECONDARY:  # objects are kept
build/standalone/sanitized/%.o: %.cpp $(CPP) $(filter %.h,$(CPP_TESTS))
	@mkdir -p $(@D)
	$(CXX) $(STANDALONE_FLAGS) -DCONVARITH_EMULATED_AMX=1 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -c $< -o $@

build/standalone/sanitized/%: build/standalone/sanitized/tests/standalone/%.o $(STANDALONE:%.cpp=build/standalone/sanitized/%.o)
	$(CXX) -fsanitize=address,undefined $^ -o $@

build/standalone/aarch64/%.o: %.cpp $(CPP) $(filter %.h,$(CPP_TESTS))
	@mkdir -p $(@D)
	$(AARCH64) $(STANDALONE_FLAGS) -O3 -c $< -o $@

build/standalone/aarch64/%: build/standalone/aarch64/tests/standalone/%.o $(STANDALONE:%.cpp=build/standalone/aarch64/%.o)
	$(AARCH64) -static $^ -o $@

# Stamps: a second call of a target above finds them newer than what they are made of, and does nothing again.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(OLDEST)/.installed: requirements-dev.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(torch|setuptools)==' requirements-dev.txt > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check '$(word 1,$(OLDEST_TORCH))' '$(word 2,$(OLDEST_TORCH))' \
	  -r $(OLDEST)/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py pyproject.toml $(CPP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@
