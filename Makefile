# Two commands do all the set-up a fresh machine needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
MINUTES ?= 10
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow faults lint bench clean

demo: $(INSTALLED)  ## Fetch the footage, run every stage, say where the report is
	python demo/fetch_footage.py data/fish
	dvc repro
	@echo "Done. Open $(CURDIR)/report.html in a browser."

test: $(INSTALLED) lint  ## What must hold on one machine without a GPU, but for the slowest tests
	python -m pytest -n 2 -m "not slow"

test-slow: $(INSTALLED)  ## The slowest: the whole flow by DVC, kills, several processes, compilers
	python -m pytest -n 2 -m slow

faults: $(INSTALLED)  ## Inject faults for MINUTES minutes: kills, full disks, flipped bits, forged files
	python -m tests.faults --minutes $(MINUTES) --out faults.json

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

bench: $(INSTALLED)  ## Speed and memory beside the machine's limit, then how they grow with length
	python -m benchmarks
	python -m benchmarks.growth

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and by exact version: a range would fetch a CUDA build of several gigabytes.
	python -m pip install --quiet -c constraints.txt torch
	python -m pip install --quiet -c constraints.txt -e '.[dev,tensorboard]'
	touch $@

clean:  ## Delete everything that the stages made
	rm -rf data frames tokens run samples metrics.json report.html faults.json
