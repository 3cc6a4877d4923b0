# make demo: set up and run the whole main job. make test: set up and run the tests.
PYTHON ?= python3
VENV ?= .venv
# Test files run in so many processes.
TEST_WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint format types wheel check checkpoints clean

setup: $(STAMP)

# The constraints keep torch to a build without CUDA; see the file.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("thriftroute needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/thriftroute demo

test: setup
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --cov --cov-report=term:skip-covered

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
		-p thriftroute.router -p thriftroute.data -p thriftroute.training -p thriftroute.eval \
		-p thriftroute.serve -p thriftroute.integrations \
		-p thriftroute.logs -p thriftroute.audit -p thriftroute.watch -p thriftroute.scale

wheel: setup
	rm -rf dist build/lib build/bdist.* *.egg-info
	$(BIN)/python -m build --wheel --quiet

check: lint types test

clean:
	rm -rf $(VENV) build dist out *.egg-info
