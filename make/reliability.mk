# Fuzzing, coverage and versions: too slow for every change.
FUZZ_SECONDS ?= 120
MATRIX ?= 5.2.0 5.23.0
NOT_SLOW := not slow and not browser

.PHONY: fuzz coverage test-matrix
fuzz: $(VENV)/.test-installed ## throw mutated input at the parsers for FUZZ_SECONDS
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py $(FUZZ_SECONDS)

coverage: $(VENV)/.test-installed ## branch coverage of the engine
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -m "$(NOT_SLOW)"
	$(BIN)/python -m coverage report --include="forward_influence/*"

test-matrix: $(addprefix .venv-matrix-,$(MATRIX)) ## the fast suite on the oldest and the newest transformers
	for version in $(MATRIX); do \
		OMP_NUM_THREADS=1 .venv-matrix-$$version/bin/python -m pytest -m "$(NOT_SLOW) and not real_model" || exit 1; \
	done

.venv-matrix-%: pyproject.toml
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet "$(TORCH)" "transformers==$*"
	$@/bin/python -m pip install --quiet --editable ".[test]" "transformers==$*"
	touch $@
