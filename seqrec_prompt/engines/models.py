"""Loading models, tokenizers and adapters, and naming them by what they hold."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from seqrec_prompt.artifacts import hash_file, read_manifest
from seqrec_prompt.engines import smollm2
from seqrec_prompt.errors import MissingExtraError, ModelError

transformers_logging.disable_progress_bar()  # loading takes a second; the bar that counts is the caller's
# TRL still sets this option by its old name, whatever this package does.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
ADAPTER = "adapter_model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = (
    "A pickle can run code when it is loaded, so only safetensors are read: convert a pickle you trust with "
    "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)."
)
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja")
# What a sentence-transformers model has beside that: its modules, how much of a text it reads, its prompts.
SENTENCE = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def resolve(model: str) -> str:
    """Turn a model's name into what transformers loads: a directory, or a hub name as it is."""
    if model == smollm2.NAME and not Path(model).exists():
        return str(smollm2.model_directory())
    return model


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """Load the tokenizer of a hub name, a directory or `smollm2`. Raises ModelError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(resolve(model), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load("tokenizer", model, error)) from None


def load_model(model: str, dtype: torch.dtype, revision: str | None = None, *, four_bits: bool = False) -> Any:
    """Load a causal language model on the CPU, or in `four_bits` (nf4, to train an adapter) where bitsandbytes puts it.

    Raises ModelError when it cannot be found or read, MissingExtraError without bitsandbytes.
    """
    quantised = {}
    if four_bits:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtraError(
                "bitsandbytes, which holds a model in four bits,", 'pip install "seqrec_prompt[quant]"'
            )
        quantised["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            resolve(model),
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,  # said, for unsaid it asks at the terminal
            **quantised,
        )
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load("model", model, error)) from None


def model_hash(model: str, revision: str | None = None) -> str:
    """Identity of a base model: SHA-256 of its config, its tokenizer, and the layout and samples of its weights.

    Of a sentence-transformers model also what comes after the transformer: its list of modules, and their settings
    and weights, such as the pooling.

    Of each tensor the first kilobyte of every megabyte is read, which takes about a second for seven billion
    parameters and differs between any two trainings. A hub name is resolved to its downloaded files. Raises
    ModelError when there is no such model.
    """
    directory = Path(resolve(model))
    if not directory.is_dir():
        try:
            kept = snapshot_download(
                model,
                revision=revision,
                allow_patterns=["config.json", "*/config.json", "*.safetensors", *TOKENIZER, *SENTENCE],
            )
        except (OSError, ValueError) as error:
            raise ModelError(_cannot_load("model", model, error)) from None
        directory = Path(kept)
    parts = [directory, *(directory / name for name in _modules(directory))]
    weights = [file for part in parts for file in sorted(part.glob("*.safetensors"))]
    if not weights and (pickled := sorted(file for end in PICKLED for file in directory.glob(end))):
        raise ModelError(f"'{model}' has only pickled weights ({pickled[0].name}). {CONVERT}")
    if not any((part / "config.json").exists() for part in parts) or not weights:
        raise ModelError(_cannot_load("model", model, FileNotFoundError("no config.json with safetensors weights")))
    digest = hashlib.sha256()
    for part in parts:
        for name in ("config.json", *TOKENIZER, *SENTENCE):
            if (part / name).exists():
                where = (part / name).relative_to(directory).as_posix()
                digest.update(where.encode() + (part / name).read_bytes())
    for file in weights:
        # Layout of safetensors: eight bytes with the header's size, a JSON header with each tensor's range, the data.
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = stream.read(min(size, file.stat().st_size))
            try:
                entries = json.loads(header).items()
            except ValueError:
                raise ModelError(f"{file} is not a safetensors file (a pointer? try: git lfs pull).") from None
            digest.update(file.relative_to(directory).as_posix().encode() + header)
            tensors = [entry["data_offsets"] for name, entry in entries if name != "__metadata__"]
            if 8 + size + max((end for _, end in tensors), default=0) != file.stat().st_size:
                raise ModelError(f"{file} is cut off or damaged. Download or convert the model again.")
            for begin, end in sorted(tensors):
                for at in range(begin, end, 1 << 20):
                    stream.seek(8 + size + at)
                    digest.update(stream.read(min(1 << 10, end - at)))
    return digest.hexdigest()


def _modules(directory: Path) -> list[str]:
    """Folders of the modules that a sentence-transformers model has beside the transformer, if it is one."""
    file = directory / SENTENCE[0]
    if not file.exists():
        return []
    try:
        return [module["path"] for module in json.loads(file.read_text(encoding="utf-8")) if module["path"]]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{file} is no list of sentence-transformers modules. Download the model again.") from None


def trained_adapter(adapter: Path, model: str, base: str) -> tuple[dict[str, Any], str]:
    """The manifest and the hash of an adapter that `finetune` or `prefer` made; `base` is the hash of `model`.

    Raises ModelError when its weights are missing or it was trained on another base model.
    """
    trained, made = read_manifest(adapter, "finetune", "prefer"), adapter_hash(adapter)
    if trained["inputs"]["model"] != base:
        raise ModelError(
            f"{adapter} was trained on another base model ('{trained['config']['model']}') than "
            f"'{model}' is here. Give --model of the model it was trained on."
        )
    return trained, made


def with_adapter(model: Any, adapter: Path) -> Any:
    """Merge an adapter that 'finetune' made into its base model; a model that it trained as a whole is loaded."""
    if (adapter / "config.json").exists():
        return load_model(str(adapter), model.dtype)
    return peft_model(model, adapter).merge_and_unload()


def peft_model(model: Any, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """Put an adapter that 'finetune' made on its base model. Raises ModelError when it does not load."""
    if not (adapter / ADAPTER).exists():  # PEFT would take a pickled adapter_model.bin instead
        raise ModelError(f"{adapter} has no {ADAPTER}. Give a directory that 'finetune' made. {CONVERT}")
    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"Cannot load the adapter {adapter}: {reason}\nGive a directory that 'finetune' made."
        ) from None


def adapter_hash(adapter: Path) -> str:
    """Identity of what 'finetune' made: of the adapter's weights, or of the whole model's.

    Raises ModelError when the directory holds neither.
    """
    if (adapter / "config.json").exists():
        return model_hash(str(adapter))
    if not (adapter / ADAPTER).exists():
        raise ModelError(f"{adapter} has no {ADAPTER}. Run 'finetune' again.")
    return hash_file(adapter / ADAPTER)


def _cannot_load(what: str, model: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, HFValidationError) or isinstance(error.__cause__, HFValidationError):
        reason = "there is no such directory"  # and so it was taken for a hub name, which has one slash at most
    return (
        f"Cannot load the {what} of '{model}': {reason}\n"
        "Give a hub name, a directory with config.json and safetensors weights, or 'smollm2'."
    )
