# kvpress: its own environment, for it needs transformers below 5.3.
KVPRESS_VENV ?= .venv-kvpress
KVPRESS_PYTHON ?= python3

.PHONY: test-kvpress
test-kvpress: $(KVPRESS_VENV)/.stamp-ready ## our rules beside kvpress's presses, on transformers 5.2
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(KVPRESS_VENV)/bin/python -m pytest tests/with_kvpress tests/influence/test_influence.py tests/selectors/test_rules.py

# torch comes from where the rest of the environment has it: the CPU wheel is enough.
$(KVPRESS_VENV)/.stamp-ready: pyproject.toml make/kvpress.mk
	$(KVPRESS_PYTHON) -m venv $(KVPRESS_VENV)
	$(KVPRESS_VENV)/bin/python -m pip install --quiet "torch==2.13.0" "transformers>=5.2,<5.3" "kvpress==0.5.5"
	$(KVPRESS_VENV)/bin/python -m pip install --quiet --editable ".[test,kvpress]" "transformers>=5.2,<5.3"
	touch $@
