# make demo: set up and run the whole main job. make test: set up and run the tests.
PYTHON ?= python3
VENV ?= .venv
# Test files run in so many processes.
TEST_WORKERS ?= 2
PARALLEL = -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
# And each with one thread: those of several processes, for small matrices, mostly wait for each other.
test test-range test-contract: export OMP_NUM_THREADS = 1
test test-range test-contract: export OPENBLAS_NUM_THREADS = 1
# Images set this one. Without bytecode each process compiles what it imports: LiteLLM in 12 s, not 6.
export PYTHONDONTWRITEBYTECODE =
# Tests of what LiteLLM does with requests, answers and errors, and of what it says about models.
CONTRACT = $(wildcard tests/test_upstream_*.py) $(wildcard tests/test_providers_*.py) tests/test_litellm_plugin.py \
	tests/test_registry.py tests/test_serve_clients.py
BIN := $(VENV)/bin
FIGURES := docs/results.md docs/audit.md docs/guarantee.md docs/watch.md docs/second-look.md
ROOMS := router providers data labels training eval serve integrations cli testing research
STAMP := $(VENV)/.installed

# The demo's own environment, without torch; one of `make setup` will do.
DEMO_VENV := $(if $(wildcard $(STAMP)),$(VENV),.venv-demo)
DEMO := $(DEMO_VENV)/bin

.PHONY: setup demo-setup lock demo test test-range test-contract figures docs docs-deploy lint format types wheel check clean

setup: $(STAMP)

# Every package is checked against the lock's hashes but torch: each index has its own builds of it,
# so its version alone is pinned. .ci/torch_cpu.py takes one without CUDA.
$(STAMP): pyproject.toml requirements.lock .ci/torch_cpu.py .ci/install
	$(PYTHON) -c 'import sys; sys.exit("thriftroute needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p build && sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > build/uv.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement build/uv.txt
	VENV=$(VENV) .ci/install $(BIN)/python --require-hashes --no-deps --requirement requirements.lock
	$(BIN)/python .ci/torch_cpu.py
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $(STAMP)

# Make both locks anew, of the newest versions that pyproject.toml allows; `make lock UPGRADE=` keeps
# the versions that still fit. The image's lock is a part of the other one.
UPGRADE ?= --upgrade
# What torch's CUDA build for Linux needs and its CPU build does not: none of it is in the lock.
CUDA := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvshmem-cu13 triton
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command 'make lock' --group build

demo-setup: $(DEMO_VENV)/.installed

.venv-demo/.installed: pyproject.toml .ci/demo.lock
	$(PYTHON) -c 'import sys; sys.exit("thriftroute needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else None'
	test -x $(DEMO)/python || $(PYTHON) -m venv .venv-demo
	$(DEMO)/python -m pip install --quiet --no-compile --require-hashes --no-deps \
		--requirement .ci/demo.lock
	$(DEMO)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(DEMO)/python -m pip check
	touch $@

lock: setup
	mkdir -p build && printf '%s\n' $(CUDA) > build/cuda.txt
	$(COMPILE) $(UPGRADE) --excludes build/cuda.txt --no-emit-package torch --extra dev \
		--output-file requirements.lock
	$(COMPILE) --upgrade --constraint requirements.lock --extra serve --extra postgres --extra otel \
		--output-file deploy/requirements.lock
	$(COMPILE) --upgrade --constraint requirements.lock --extra demo --output-file .ci/demo.lock

demo: demo-setup
	$(DEMO)/thriftroute try --once
	$(DEMO)/thriftroute demo

test: setup
	$(BIN)/python -m pytest $(PARALLEL) --durations=25 --cov --cov-report=term:skip-covered

# The whole suite at both ends of the range of LiteLLM that pyproject.toml states.
test-range: setup
	VENV=$(VENV) .ci/litellm lowest $(PARALLEL)
	VENV=$(VENV) .ci/litellm newest $(PARALLEL)

# The tests that talk to LiteLLM, with the newest one where the lock's is another.
test-contract: setup
	VENV=$(VENV) .ci/litellm newer $(PARALLEL) $(CONTRACT)

# Every command that a page of docs/ quotes in a block for a published figure. It takes hours.
figures: setup
	grep -hE '^    (thriftroute evaluate|python -m thriftroute\.research) ?' $(FIGURES) \
		| PATH="$(CURDIR)/$(BIN):$$PATH" sh -ex

# The site, into site/.
docs: setup
	$(BIN)/python -m mkdocs build --strict --quiet

docs-deploy: setup
	$(BIN)/python -m mkdocs gh-deploy --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# mypy names the package after its folder: a link gives any clone the right name.
types: setup
	mkdir -p build/types && ln -sfn ../.. build/types/thriftroute
	cd build/types && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		$(foreach room,$(ROOMS),-p thriftroute.$(room))

wheel: setup
	rm -rf dist build/lib build/bdist.* *.egg-info
	$(BIN)/python -m build --wheel --no-isolation --quiet

check: lint types test

clean:
	rm -rf $(VENV) .venv-demo build dist out site *.egg-info
