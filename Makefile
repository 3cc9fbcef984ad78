# `make demo` and `make test` work on a fresh machine with Python 3.11, git and make alone.
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export OMP_WAIT_POLICY ?= passive
UI_PORT ?= 5000
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# raised once a torch release; plain pip takes it as a CPU build where one is offered, and any other with gigabytes of CUDA
TORCH := torch<2.14
LOWEST_TESTS := tests/test_files.py tests/test_hdf5.py tests/test_splits.py tests/test_selection.py tests/test_folders.py tests/test_redaction.py tests/test_params.py tests/test_tables.py tests/test_causes.py \
	tests/test_store.py tests/test_store_keeping.py tests/test_minima.py tests/test_cli_models.py tests/test_cli_cohort.py \
	tests/slides tests/mining tests/evidence tests/learning/test_features.py tests/learning/test_heads.py tests/learning/training/test_losses.py
# the comments of a file stay, and below them stand the versions of a virtual environment
written = { grep '^\#' $(2); $(1)/bin/python -m pip freeze --all --exclude-editable | grep -vE '^(pip==|\#)' | sed 's/+cpu$$//' | LC_ALL=C sort -f; } > $(1)/written.txt && cp $(1)/written.txt $(2)

# instructions that torch and oneDNN may use: the least, AVX2, AVX2 for oneDNN alone, whatever the processor has
PROCESSORS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 --unset=ATEN_CPU_CAPABILITY
PROCESSOR_TESTS := tests/learning tests/loop tests/prediction

.PHONY: help setup demo repro rounds cv ui test lint test-services test-lowest test-processors mutants constraints soak fuzz pictures clean bench-mining

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hnm needs Python 3.11 or newer; name one by PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/.installed ## the virtual environment, by plain pip, with the versions that are tested (constraints.txt)

data/demo/slides.csv: | setup
	hnm demo data/demo

demo: setup data/demo/slides.csv repro ## the whole loop on procedural slides, and its table

repro: | setup ## dvc repro, and the table of rounds
	dvc repro
	@hnm rounds

rounds: | setup ## the table of rounds of the last run
	@hnm rounds

cv: | setup ## cross-validation on split.folds folds, over the tiles of the last run
	hnm cv

ui: | setup ## MLflow's pages on 127.0.0.1:$(UI_PORT)
	hnm ui --port $(UI_PORT)

lint: | setup ## style, types, layers
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test: lint ## lint, types, layers and the whole suite
	pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not services and not soak' # more workers than processors: tests of limits, of hangs and of couriers wait

test-services: | setup ## what needs a browser, PostgreSQL, R, dask or S3; installs them, programs where it may
	@missing=""; command -v chromium chromium-browser google-chrome >/dev/null || missing="chromium"; \
		command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
		command -v Rscript >/dev/null || missing="$$missing r-cran-proc"; \
		command -v docker-compose >/dev/null || missing="$$missing docker-compose"; \
		test -z "$$missing" || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing >/dev/null; } || echo "not here, and not to be installed: $$missing"
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[dev,services]'
	pytest -m services -rs

test-processors: | setup ## what computes by torch, as on processors with fewer instructions; PROCESSORS="ATEN_CPU_CAPABILITY=default"
	for one in $(PROCESSORS); do echo "$$one"; env $$one pytest -n 2 --dist loadfile -m 'not services and not soak' $(PROCESSOR_TESTS) || exit 1; done

mutants: | setup ## small faults put into the core, one at a time, and whether its tests see them: half an hour, goes on where it stopped; ARGS as in benchmarks/mutants.py
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[mutants]'
	nice -n 10 python benchmarks/mutants.py $(ARGS)

.venv-lowest/.installed: constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python $(PIP_INSTALL) -r constraints-lowest.txt
	touch $@

test-lowest: .venv-lowest/.installed ## the suite's core on the lowest versions that pyproject.toml allows
	PYTHONPATH=$(CURDIR) PATH=$(CURDIR)/.venv-lowest/bin:$$PATH .venv-lowest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not services and not soak' $(LOWEST_TESTS)

constraints: ## renews constraints.txt and constraints-lowest.txt: the newest versions, and the lowest, that pip puts together today
	rm -rf .venv-newest .venv-lowest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP_INSTALL) -e '.[dev,services,mutants]' '$(TORCH)'
	$(call written,.venv-newest,constraints.txt)
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/minima.py > .venv-lowest/minima.txt
	.venv-lowest/bin/python $(PIP_INSTALL) -r .venv-lowest/minima.txt
	$(call written,.venv-lowest,constraints-lowest.txt)

soak: | setup ## stages killed at random moments of `dvc repro`, KILLS times (20), faults at every write, a study applied: some minutes
	KILLS=$(or $(KILLS),20) pytest -m soak -s tests/soak tests/faults

fuzz: | setup ## 1,000 damaged and hostile files through the functions that read them: about 3 minutes; ARGS="--seed 7 --inputs 5000"
	python -m tests.faults.fuzzing $(ARGS)

bench-mining: | setup ## does mining help? COHORTS="name=slides.csv ..."; hours, but it goes on where it stopped; adds to benchmarks/results; ARGS as in benchmarks/mining.py
	@test -n "$(COHORTS)" || { echo 'name the cohorts: make bench-mining COHORTS="mine=cohorts/mine/slides.csv"'; exit 2; }
	python benchmarks/mining.py $(COHORTS:%=--cohort %) $(ARGS)
	python benchmarks/mining_evidence.py --out docs/mining_evidence.md --figure docs/images/mining_cost.png

pictures: results/report.html ## the README's picture, from the report of the last run; needs Chromium
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir=$$(mktemp -d) --window-size=1200,1330 \
		--screenshot=docs/images/report.png file://$(CURDIR)/results/report.html 2>/dev/null

clean: ## everything that runs have made; the slides, the cache and MLflow's runs stay
	rm -rf results data/cohort data/tiles data/encoders data/features data/heads data/scores data/mined
