# The workbook's commands. On a machine with Python 3.11, 3.12 or 3.13, git and make:
#   make run     every notebook for every sample, then the pages (DATA=, RESULTS=, FIGURES= for other folders; SCHEDULER= of a dask cluster,
#                PROFILE=profiles/slurm: every step a job of a SLURM cluster)
#   make test    the tests
# and: test-fast, lab, share, pdf, screenshots, validation (FULL=1), peers, numbers, docs, house, audit, lock, lint,
# clean.

PYTHON ?= python3
CORES ?= all
DATA ?=
RESULTS ?=
FIGURES ?=
FULL ?=
SCHEDULER ?=
PROFILE ?=
export DATA RESULTS FIGURES FULL SCHEDULER

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --no-deps --require-hashes
RUN_LOG = $${RESULTS:-results}/run.log
DEMO = $${RESULTS:-results}/00_demo_data
VALIDATION = $${RESULTS:-results}/09_validation
DEMO_MARK = data/samples/.unfinished
FAST := helpers.py src pages tests/workbook/test_contracts.py tests/workbook/test_lamella_record.py tests/workbook/test_properties.py tests/emphase/test_crystals.py tests/emphase/test_files.py tests/emphase/test_frames.py tests/emphase/test_lamella.py
STAGES = $(BIN)/python workflow/run_stages.py --snakefile Snakefile --cores $(CORES) --keep-going --rerun-incomplete \
	--rerun-triggers mtime params --quiet all --scheduler greedy --nolock $(if $(PROFILE),--profile $(PROFILE))

.PHONY: setup run demo test test-fast lab share pdf screenshots validation peers numbers docs house audit lock lint clean

setup: $(READY)

# orix's compiled functions are made here once: two notebooks that make them at the same time leave a cache that crashes whoever loads it.
# Python's byte code is made here too, by loading what the first steps would compile side by side
$(READY): env.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "the workbook needs Python 3.11 to 3.13: make PYTHON=python3.13 ...")'
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' env.lock >$(VENV)/uv.txt
	@$(INSTALL) -r $(VENV)/uv.txt
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r env.lock || \
	{ echo "uv does not read pip's settings: once more with pip (two minutes) ..."; $(INSTALL) -r env.lock; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@$(BIN)/python -c 'import os, pathlib, sysconfig; \
	pathlib.Path(sysconfig.get_paths()["purelib"], "workbook.pth").write_text(os.getcwd() + "\n", encoding="utf-8")'
	@find $(VENV) -name 'guf-quaternion.*.nb[ic]' -delete
	@$(BIN)/python -c 'from orix.quaternion import Quaternion; from orix.vector import Vector3d; \
	q = Quaternion([1.0, 0, 0, 0]); ~q, q * q, q * Vector3d.zvector()'
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'from workflow import warm; warm.load_packages()'
	@touch $@

run: $(READY)
	@mkdir -p "$${RESULTS:-results}"
	@if [ -z "$$DATA" ] && { [ -e $(DEMO_MARK) ] || ! ls data/samples/*/sample.yaml >/dev/null 2>&1; }; then \
	$(MAKE) --no-print-directory demo; fi
	@: >"$(RUN_LOG)"
	@$(STAGES) 2>>"$(RUN_LOG)"
	@$(BIN)/python -c 'import os, sys; from pages import share; sys.exit(share.finish_run(os.environ["DATA"], os.environ["RESULTS"]))'

# The mark says that the simulation was broken off: then it is done again
demo: $(READY)
	@echo "data/samples is empty: simulating the three demo samples ..."
	@mkdir -p "$${RESULTS:-results}" && touch $(DEMO_MARK)
	@$(BIN)/python -c 'import json, os; \
	print(json.dumps({"figures_dir": os.path.abspath(os.environ["FIGURES"]) if os.environ["FIGURES"] else ""}))' >"$(DEMO).yaml"
	@$(BIN)/python -m workflow.execute --no-progress-bar --log-level ERROR --stdout-file - --cwd notebooks -f "$(DEMO).yaml" \
	notebooks/00_demo_data.ipynb "$(DEMO).ipynb" 2>"$(DEMO).log" || \
	{ $(BIN)/python -c 'import sys, helpers; print("FAILED 00_demo_data:", helpers.run_error(sys.argv[1]))' "$(DEMO).ipynb"; exit 1; }
	@rm $(DEMO_MARK)

# Three processes take a test file at a time, with one thread each: some wait for kernels and browsers. Kernels are compiled beside style,
# types and the first files, which need none.
test: $(READY)
	@$(BIN)/python tests/compile_kernels.py & compiled=$$!; $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && \
	PYTHONDONTWRITEBYTECODE= NUMBA_NUM_THREADS=$${NUMBA_NUM_THREADS:-1} $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder; tested=$$?; \
	wait $$compiled && exit $$tested

# test-fast: style, types, and the tests that compile and simulate next to nothing
test-fast: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy
	@$(BIN)/python -m pytest $(FAST)

lab: $(READY)
	@$(BIN)/jupyter lab

share: $(READY)
	@$(BIN)/python -c 'import os, sys; from pages import share; sys.exit(share.report(share.share_pages, os.environ["RESULTS"], os.environ["DATA"]))'

# The comparison as a PDF, printed by Chromium (or the one that CHROMIUM names)
pdf: $(READY)
	@$(BIN)/python -c 'import os, sys; from pages import share; sys.exit(share.report(share.print_comparison, os.environ["RESULTS"], os.environ["DATA"]))'

# The pictures of the explorers, taken in JupyterLab from the demo samples after `make run`
screenshots: $(READY)
	@$(BIN)/python tests/workbook/screenshots.py

# Notebook 09: accuracy against truth, and speed
validation: $(READY)
	@mkdir -p "$${RESULTS:-results}"
	@$(BIN)/python -c 'import json, os; print(json.dumps({"full": bool(os.environ.get("FULL")), \
	**{k + "_dir": os.path.abspath(os.environ[k.upper()]) if os.environ[k.upper()] else "" for k in ("results", "figures")}}))' >"$(VALIDATION).yaml"
	@$(BIN)/python -m workflow.execute --no-progress-bar --log-level ERROR --stdout-file - --cwd notebooks -f "$(VALIDATION).yaml" \
	notebooks/09_validation.ipynb "$(VALIDATION).ipynb" 2>"$(VALIDATION).log" || \
	{ $(BIN)/python -c 'import sys, helpers; print("FAILED 09_validation:", helpers.run_error(sys.argv[1]))' "$(VALIDATION).ipynb"; exit 1; }
	@$(BIN)/python -c 'import os; from pages import render; print("pages:", os.path.relpath(render.render_pages(os.environ["RESULTS"], os.environ["DATA"])))'

# What 09 compares with where it is installed, beside the locked environment: abTEM's forward model, StackReg
peers: $(READY)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps abtem==1.0.11 pyfftw==0.15.1 pystackreg==0.2.8

# README's numbers, from the last validation, which is added to docs/validation.jsonl
numbers: $(READY)
	@$(BIN)/python tests/workbook/readme_numbers.py "$$RESULTS"

# env.lock: everything that env.yml's pins need, with hashes, for Python 3.11 to 3.13
lock: $(READY)
	@sed -n 's/^ *- \([A-Za-z0-9_.-]*==.*\)$$/\1/p' env.yml >$(VENV)/env.in
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file env.lock $(VENV)/env.in
	@echo "env.lock is made anew; the next make sets it up"

# The library's pages, from its docstrings: docs/api/index.html
docs: $(READY)
	@$(BIN)/pdoc --docformat numpy --output-directory docs/api emphase && echo docs/api/index.html

# The picture of the house in CONTRIBUTING, from the imports
house: $(READY)
	@PYTHONPATH=tests/workbook $(BIN)/python tests/workbook/draw_house.py

# Known vulnerabilities of the pinned packages; tests/workbook/audit_exceptions.yaml says why one may stay
audit: $(READY)
	@[ -x $(VENV)/audit/bin/pip-audit ] || { $(PYTHON) -m venv $(VENV)/audit && \
	$(VENV)/audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit==2.10.1; }
	@$(BIN)/python tests/workbook/audit.py $(VENV)/audit/bin/pip-audit env.lock

lint: $(READY)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy

# The project's own results, figures and pages; never the data, what was chosen by hand, nor the figures that are tracked
clean:
	@if [ -d results ]; then find results -not -type d -not -name manual.yaml -delete && find results -type d -empty -delete; fi
	@if [ -d results ]; then find results -name manual.yaml -exec echo "kept, chosen by hand:" {} \;; fi
	@git clean -qfdX figures
