# The table of model families in docs/models.md.
.PHONY: models-table
models-table: $(VENV)/.test-installed ## measure a tiny model of every family again and write docs/models.md
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/family_table.py

.PHONY: families
families: $(VENV)/.test-installed ## every family and layout in every way, some minutes
	$(PYTEST) tests/instrument/test_families.py tests/instrument/test_family_ways.py
