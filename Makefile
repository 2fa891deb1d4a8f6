# Everything from a fresh checkout: Python 3.11 or later and pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Where torch alone comes from; empty: pip's default index, whose build for x86-64 brings CUDA along.
# https://download.pytorch.org/whl/cpu has the build for CPUs, as PyTorch's own page says.
TORCH_INDEX ?=
# What is passed to every pip install, for example an index of your own.
PIP_ARGS ?=
SERVE_ARGS ?=
PYTEST_ARGS ?=

LOCKED ?= yes

BIN := $(VENV)/bin
# Bytecode is made of what is imported, when it first is: of most that is installed nothing ever is.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS)
# What an installation is made from; the kernels are compiled where there is a C++ compiler.
SOURCES := pyproject.toml setup.py $(wildcard megainfer/native/*.h megainfer/*/native/* megainfer/*/*/native/*)

.PHONY: run test test-all check setup clean

run: $(VENV)/.run  ## serve the demo model with one attention and one expert process
	$(BIN)/megainfer serve $(SERVE_ARGS)

test: $(VENV)/.test  ## lint, types and the test suite
	scripts/check $(BIN)
	scripts/suite $(BIN) -m "not slow and not gpu" $(PYTEST_ARGS)

test-all: $(VENV)/.test  ## the suite with its soaks and full matrices
	scripts/check $(BIN)
	scripts/suite $(BIN) -m "not gpu" $(PYTEST_ARGS)

check: $(VENV)/.test  ## lint and types only
	scripts/check $(BIN)

setup: $(VENV)/.test

# torch first and exactly: a range could bring another build of it.
$(VENV)/.torch:
	@echo "Setting up $(VENV) (once; a few minutes where packages must be downloaded)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

# Exactly the files that the lock files name, by their hashes; with LOCKED= whatever is newest.
$(VENV)/.run: $(VENV)/.torch $(SOURCES) requirements.lock
ifdef LOCKED
	$(INSTALL) --no-deps --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
else
	$(INSTALL) -e ".[demo]"
endif
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(SOURCES) requirements-test.lock
ifdef LOCKED
	$(INSTALL) --no-deps --require-hashes -r requirements-test.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
else
	$(INSTALL) -e ".[demo,test]"
endif
	@touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build *.egg-info megainfer/compute/cpu/_native* megainfer/m2n/_native* \
		megainfer/ranks/_native*
