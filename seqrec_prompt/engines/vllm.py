"""vLLM behind the search, and behind `embed`: adapters are served beside the base model, not merged into it.

vLLM reads through its prefix cache, so a session's prompt is computed once, and shares its template with the others;
a question costs what stands behind the last full block of the cache. How many are asked at once is vLLM's to plan.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.engines.embedder import Pooling, TokenisedTexts
from seqrec_prompt.engines.hardware import Dtype, device, torch_dtype
from seqrec_prompt.engines.models import load_tokenizer, resolve
from seqrec_prompt.engines.requests import MOST_IDS, FloatArray, Question, RequestEngine, answer_split
from seqrec_prompt.errors import MissingExtraError, ModelError, is_out_of_memory
from seqrec_prompt.ragged import IntArray

INSTALL = 'pip install "seqrec_prompt[vllm]"'
# block_size: tokens that the prefix cache keeps or forgets together, as few as vLLM has there. On a CPU it would want
# nearly all memory for itself; VLLM_CPU_KVCACHE_SPACE says how many GB the cache takes instead of two.
MACHINE: dict[str, dict[str, Any]] = {
    "cpu": {"block_size": 32, "enforce_eager": True, "kv_cache_memory_bytes": 2 << 30},
    "cuda": {"block_size": 16},
}
SHARE = 0.92  # of a GPU's memory that vLLM takes by default
LEFT = 0.02  # of it, what the libraries themselves take between the look at what is free and vLLM's own
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, as vLLM makes room for them
# Said before vLLM is imported, and only where the user has not: one process, so that a stopped run leaves none behind;
# the model runner that takes our processor; nothing sent to vLLM's statistics; of its messages errors only, and those
# not on stdout, which programs read.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


class VLLMEngine(RequestEngine):
    """Scores title prefixes with vLLM (protocol `decoding.search.PrefixScorer`).

    processor: whether `llm` was started with `CatalogProcessor`, which answers a question in one request; without it,
    forced tokens are asked for one by one, and choices MOST_IDS at a time.
    """

    def __init__(self, llm: Any, tokenizer: Any, adapter: Any = None, *, processor: bool) -> None:
        super().__init__(int(llm.model_config.max_model_len))
        self.llm, self.tokenizer, self.adapter, self.processor = llm, tokenizer, adapter, processor

    @classmethod
    def load(
        cls,
        model: str,
        adapter: Path | None = None,
        dtype: Dtype = "auto",
        revision: str | None = None,
        *,
        context: int = 2048,
        processor: bool | None = None,
    ) -> VLLMEngine:
        """Start vLLM on a base model, with a LoRA adapter beside it or with the whole model that `finetune` made.

        context: most tokens of a prompt with its title. processor: None for wherever this vLLM takes it. Raises
        MissingExtraError without vLLM, ModelError for a model or an adapter that vLLM does not take.
        """
        _require_vllm()
        if processor is None:
            processor = takes_processor()
        settings: dict[str, Any] = {"logprobs_mode": "raw_logprobs"}
        if processor:
            from seqrec_prompt.engines.vllm_processor import CatalogProcessor

            # The V1 runner keeps the list of what was written up to date only for the step that is being scheduled.
            settings = {"logprobs_mode": "processed_logprobs", "logits_processors": [CatalogProcessor]}
            settings |= {"max_logprobs": -1, "async_scheduling": False}
        llm, request = _start(model, adapter, dtype, revision, context, settings)
        return cls(llm, load_tokenizer(model, revision), request, processor=processor)

    def answer(self, questions: Sequence[Question]) -> list[FloatArray]:
        """Log-softmax over the vocabulary: per question that of each forced token, then of each choice."""
        return self._answer_whole(questions) if self.processor else answer_split(questions, MOST_IDS, self._answer_each)

    def _answer_whole(self, questions: Sequence[Question]) -> list[FloatArray]:
        from seqrec_prompt.engines.vllm_processor import CHOICES, FORCED, sink

        asked = [
            _params(
                max_tokens=len(question.forced) + 1,
                logprobs=len(question.choices) + 1,
                extra_args={FORCED: question.forced, CHOICES: question.choices.tolist()},
            )
            for question in questions
        ]
        answers = []
        for question, found in zip(questions, self._generate(questions, asked), strict=True):
            forced = [
                _pick(found, step, np.array([token, sink([token])])) for step, token in enumerate(question.forced)
            ]
            before = [beside - taken + 1 for taken, beside in forced]
            choices = _pick(found, len(forced), question.choices)
            answers.append(np.concatenate([np.array(before, np.float32), choices]))
        return answers

    def _answer_each(self, parts: list[Question]) -> list[FloatArray]:
        asked = [_params(max_tokens=1, logprob_token_ids=part.choices.tolist()) for part in parts]
        return [_pick(one, 0, part.choices) for part, one in zip(parts, self._generate(parts, asked), strict=True)]

    def _generate(self, questions: Sequence[Question], asked: Sequence[Any]) -> list[Any]:
        """Log-probabilities of every request, as vLLM flattens them."""
        prompts = [{"prompt_token_ids": question.prefix} for question in questions]
        try:
            outputs = self.llm.generate(prompts, asked, use_tqdm=False, lora_request=self.adapter)
        except BaseException:
            # What is left would be answered with the next questions, from a cache that may be half written.
            engine = self.llm.llm_engine
            engine.abort_request(list(engine.output_processor.request_states), internal=True)
            self.llm.reset_prefix_cache()
            raise
        return [output.outputs[0].logprobs for output in outputs]


class VLLMEmbedder(TokenisedTexts):
    """Pools the last hidden states of a causal language model in vLLM (`embeddings.encode.Embedder`).

    The poolings are those of `CausalEmbedder`, computed here from the states of all tokens: vLLM has none whose weights
    rise.
    """

    def __init__(self, llm: Any, tokenizer: Any, pooling: Pooling, adapter: Any = None) -> None:
        self.llm, self.tokenizer, self.pooling, self.adapter = llm, tokenizer, pooling, adapter
        self.dimension = int(llm.model_config.get_hidden_size())
        self.context = int(llm.model_config.max_model_len)

    @classmethod
    def load(
        cls,
        model: str,
        adapter: Path | None = None,
        pooling: Pooling = "weighted-mean",
        dtype: Dtype = "float32",
        revision: str | None = None,
        *,
        context: int = 512,
    ) -> VLLMEmbedder:
        """Start vLLM as `VLLMEngine.load` does, to pool texts of at most `context` tokens."""
        _require_vllm()
        from vllm.config import PoolerConfig

        pooler = PoolerConfig(task="token_embed", use_activation=False)
        settings = {"runner": "pooling", "convert": "embed", "pooler_config": pooler}
        with _torch_multiplies(dtype):
            llm, request = _start(model, adapter, dtype, revision, context, settings)
        return cls(llm, load_tokenizer(model, revision), pooling, request)

    def embed(self, texts: Sequence[str]) -> VectorArray:
        """(texts, hidden) float32."""
        prompts = [{"prompt_token_ids": ids} for ids in self.tokens(texts)]
        outputs = self.llm.encode(prompts, pooling_task="token_embed", use_tqdm=False, lora_request=self.adapter)
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for row, output in enumerate(outputs):
            states = output.outputs.data.float()  # (tokens, hidden)
            if self.pooling == "last":
                vectors[row] = states[-1].numpy()
                continue
            weight = torch.arange(1, len(states) + 1) if self.pooling == "weighted-mean" else torch.ones(len(states))
            vectors[row] = (weight.float() @ states / weight.sum()).numpy()
        return vectors


def takes_processor() -> bool:
    """Whether this vLLM, with these variables, runs the processors that `CatalogProcessor` is one of."""
    there = importlib.util.find_spec("vllm.v1.sample.logits_processor") is not None
    return there and os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "0"


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vLLM", INSTALL)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _start(
    model: str, adapter: Path | None, dtype: Dtype, revision: str | None, context: int, settings: dict[str, Any]
) -> tuple[Any, Any]:
    """Start vLLM; returns it and its request for the adapter, None without one."""
    whole = adapter is not None and (adapter / "config.json").exists()  # what 'finetune' trained as a whole
    base = str(adapter) if whole else resolve(model)
    given: dict[str, Any] = (
        MACHINE[device().type]
        | _room()
        | {
            "model": base,
            "tokenizer": resolve(model),
            "revision": None if whole else revision,
            "tokenizer_revision": revision,
            "dtype": torch_dtype(dtype),
            "generation_config": "vllm",  # no sampling settings of the model's own
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
    )
    if adapter is not None and not whole:
        given |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(adapter)}
    try:
        config = AutoConfig.from_pretrained(base, revision=given["revision"], trust_remote_code=False)
        most = int(getattr(config, "max_position_embeddings", None) or 4096)
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        llm = LLM(**given, **settings, max_model_len=min(context, most))
        request = LoRARequest("adapter", 1, str(adapter)) if "enable_lora" in given else None
        if request is not None:
            llm.llm_engine.add_lora(request)  # a request would load it, too, and tell later what is wrong
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        beside = f" with the adapter {adapter}" if adapter else ""
        step = "Take --engine transformers, which reads more models and adapters."
        if "memory" in reason.lower() or is_out_of_memory(error):
            step = "End what else uses that memory, or take --engine transformers, which needs less."
        raise ModelError(f"vLLM does not start on '{model}'{beside}: {reason}\n{step}") from None
    return llm, request


@contextmanager
def _torch_multiplies(dtype: Dtype) -> Iterator[None]:
    """Start vLLM so that on a CPU torch computes its products in float32, as for the engine on transformers.

    vLLM would give them to oneDNN, where the states of SmolLM2 came out three times as far from those in float64.
    """
    from vllm import _custom_ops as operations

    there = getattr(operations, "_supports_onednn", False)
    if not there or device().type != "cpu" or torch_dtype(dtype) != torch.float32:
        yield
        return
    operations._supports_onednn = False
    try:
        yield
    finally:
        operations._supports_onednn = there


def _room() -> dict[str, float]:
    """How much of a GPU vLLM may take: its own default, or less where others are there, too."""
    if device().type == "cpu":
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": max(0.0, min(SHARE, free / total - LEFT))}


def _rank(adapter: Path) -> int:
    """Room for an adapter of this rank. Raises ModelError for one of another kind than LoRA as vLLM has it."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("use_dora"):
        raise ModelError(f"{adapter} is a DoRA adapter, which vLLM does not serve. Take --engine transformers.")
    rank = max([settings["r"], *settings.get("rank_pattern", {}).values()])
    return next((room for room in RANKS if room >= rank), rank)


def _params(**asked: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0,
        ignore_eos=True,  # the end of a title is a token like others
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
        **asked,
    )


def _pick(found: Any, step: int, wanted: IntArray) -> FloatArray:
    """(wanted,) log-probabilities that a request reports for one step; -inf of what it does not."""
    part = slice(found.start_indices[step], found.end_indices[step])
    tokens = np.array(found.token_ids[part])
    order = np.argsort(tokens)
    at = np.minimum(np.searchsorted(tokens[order], wanted), len(tokens) - 1)
    place = order[at]
    logp = np.array(found.logprobs[part], np.float32)
    return np.where(tokens[place] == wanted, logp[place], np.float32(-np.inf))
