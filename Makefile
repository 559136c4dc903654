# Two commands do all the set-up a fresh machine needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
# What the demo and the benchmarks need, and what all of the development needs.
DEMO := $(VENV)/.demo
INSTALLED := $(VENV)/.installed
PIP := python -m pip install --quiet --no-compile -c constraints.txt
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
MINUTES ?= 10
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE :=  # Compiled modules are kept; the stages start sooner.

.PHONY: demo test test-slow faults lint bench quality steering clean

demo: $(DEMO)  ## Fetch the footage, run every stage, say where the report is
	cd demo && dvc repro
	@echo "Done. Open $(CURDIR)/demo/report.html in a browser."

test: $(INSTALLED) lint  ## Linters, types and all tests that take no more than a few seconds each
	python -m pytest -n 2 -m "not slow"

test-slow: $(INSTALLED)  ## The others: whole flows, trainings, kills, several processes, compilers
	python -m pytest -n 2 -m slow

faults: $(INSTALLED)  ## Inject faults for MINUTES minutes: kills, full disks, flipped bits, forged files
	python -m tests.faults --minutes $(MINUTES) --out faults.json

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

bench: $(DEMO)  ## Speed and memory beside the machine's limit, then how they grow with length
	python -m benchmarks
	python -m benchmarks.growth

quality: $(DEMO)  ## How well models learn worlds of exact rules: hours on two cores, kept in quality/
	python -m benchmarks.quality --keep quality --out benchmarks/quality.json --page docs/quality.md

steering: $(DEMO)  ## The tables of docs/steering.md: hours on two cores
	python demo/fetch_footage.py demo/data/fish
	python -m benchmarks.steering
	python -m benchmarks.seams
	python -m benchmarks.endless
	python -m benchmarks.drift --keep drift

# Modules are compiled when they are first imported: to compile them all, most of them never used,
# takes pip longer than everything else.
$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and by exact version: a range would fetch a CUDA build of several gigabytes.
	$(PIP) torch
	$(PIP) -e '.[dvc]'
	touch $@

$(INSTALLED): $(DEMO)
	$(PIP) -e '.[dev]'
	touch $@

clean:  ## Delete what the demo and the injected faults left; what is made of your videos stays
	cd demo && rm -rf data frames tokens run samples metrics.json report.html dvc.lock
	rm -rf faults.json
