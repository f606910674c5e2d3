"""The engine on vLLM: its probabilities against plain forwards, its lists against those of the transformers engine."""

import numpy as np
import pytest
import torch

from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.decoding.lists import decode_lists
from seqrec_prompt.decoding.search import score_catalog, search
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.engines.requests import Question
from seqrec_prompt.errors import ModelError
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import TokenLists

K = 20


@pytest.fixture(scope="module")
def plain(wide_model):
    return HuggingFaceEngine.load(str(wide_model), dtype="float32")


@pytest.fixture(scope="module", params=[True, False], ids=["processor", "no processor"])
def engine(request, wide_model):
    from seqrec_prompt.engines.vllm import VLLMEngine

    return VLLMEngine.load(str(wide_model), dtype="float32", context=1024, processor=request.param)


@pytest.fixture(scope="module")
def compiled(catalog, plain):
    return compile_catalog(TemplateConfig(), catalog, plain.tokenizer)


@pytest.fixture(scope="module")
def prompts(catalog, compiled):
    draw = np.random.default_rng(0)
    sessions = [draw.integers(len(catalog), size=draw.integers(1, 8)).astype(np.int32) for _ in range(64)]
    return [compiled.prompter.prompt(items) for items in sessions]


def test_questions_that_failed_are_not_answered_with_the_next(engine, monkeypatch):
    """Out of memory in the middle of them, with vLLM in this process."""
    draw = np.random.default_rng(2)
    asked = [Question(draw.integers(300, size=40).tolist(), [], np.arange(5, dtype=np.int32)) for _ in range(6)]
    wanted = engine.answer(asked[3:])
    real, steps = engine.llm.llm_engine.step, []

    def step():
        steps.append(1)
        if len(steps) == 1:
            raise torch.OutOfMemoryError("no room")
        return real()

    monkeypatch.setattr(engine.llm.llm_engine, "step", step)
    with pytest.raises(torch.OutOfMemoryError):
        engine.answer(asked[:3])
    for one, other in zip(engine.answer(asked[3:]), wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    assert len(steps) > 1


def test_questions_are_answered_as_a_forward_does(engine, wide_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(wide_model, dtype=torch.float32).eval()
    draw, size = np.random.default_rng(1), model.config.vocab_size
    questions = []
    for length, forced, choices in [(1, 0, 1), (33, 3, 2), (64, 0, 300), (70, 12, 1), (5, 1, size - 1), (400, 2, 7)]:
        tokens = draw.integers(size, size=length + forced).tolist()
        wanted = draw.permutation(size)[:choices].astype(np.int32)  # in any order, more than a request may name
        questions.append(Question(tokens[:length], tokens[length:], wanted))
    for question, found in zip(questions, engine.answer(questions), strict=True):
        tokens = question.prefix + question.forced
        with torch.inference_mode():
            rows = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1).numpy()[len(question.prefix) - 1 :]
        steps = [rows[i, token] for i, token in enumerate(question.forced)]
        assert found == pytest.approx(np.array([*steps, *rows[-1, question.choices]]), abs=1e-3)


@pytest.mark.parametrize("scoring", ["renormalised", "joint"])
def test_the_search_finds_the_same_lists_as_on_transformers(engine, plain, compiled, prompts, scoring):
    wanted, found = (
        search(one, compiled.trie, prompts, K, scoring=scoring, shared=len(compiled.prompter.head))
        for one in (plain, engine)
    )
    assert found.items.tolist() == wanted.items.tolist()
    assert found.scores == pytest.approx(wanted.scores, abs=1e-3)
    assert found.outside == pytest.approx(wanted.outside, abs=1e-4)
    assert found.certified.all()
    assert found.counts.tokens.tolist() == wanted.counts.tokens.tolist()


def test_lists_written_title_after_title_are_the_same(engine, plain, compiled, prompts):
    wanted, found = (
        decode_lists(one, compiled.trie, prompts[:8], 6, length=4, context=1024, scoring="joint")
        for one in (plain, engine)
    )
    assert found.items.tolist() == wanted.items.tolist()
    assert found.scores == pytest.approx(wanted.scores, abs=1e-3)


def test_every_title_has_the_same_score(engine, plain, compiled, prompts):
    wanted, found = (score_catalog(one, compiled.trie, prompts[0]) for one in (plain, engine))
    assert found == pytest.approx(wanted, abs=1e-3)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-4)


def test_what_does_not_fit_the_context_is_refused(engine):
    slot = engine.prefill([np.arange(1020, dtype=np.int32) % 300])
    one = TokenLists.of([[7]])
    for _ in range(3):
        engine.logprobs(slot, one)
        slot = engine.extend(np.zeros(1, np.int64), slot, one)
    engine.logprobs(slot, one)  # one token after 1,023
    slot = engine.extend(np.zeros(1, np.int64), slot, one)
    with pytest.raises(ModelError, match=r"takes 1025 tokens.*up to 1024.*--context 1024"):
        engine.logprobs(slot, one)


def test_nothing_asked_is_nothing_answered(engine):
    engine.prefill([np.array([5], np.int32)])
    assert len(engine.logprobs(np.empty(0, np.int64), TokenLists.of([]))) == 0


@pytest.mark.parametrize(("runner", "taken"), [("0", True), ("1", False)])
def test_the_second_model_runner_takes_no_processor(monkeypatch, runner, taken):
    from seqrec_prompt.engines.vllm import takes_processor

    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", runner)
    assert takes_processor() is taken


def test_the_processor_leaves_other_rows_alone_and_follows_those_that_move():
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from seqrec_prompt.engines.vllm_processor import CHOICES, FORCED, CatalogProcessor

    processor = CatalogProcessor(None, torch.device("cpu"), False)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 5
    logp = logits.log_softmax(-1)
    written: list[int] = []
    asks = SamplingParams(extra_args={FORCED: [9], CHOICES: [0, 1, 4]})
    processor.update_state(BatchUpdate(3, [], [(0, SamplingParams(), None, []), (2, asks, None, written)], []))

    forced = processor.apply(logits.clone())
    assert torch.equal(forced[:2], logits[:2])
    assert forced[2].argmax() == 9
    told = forced[2].log_softmax(-1)
    assert told[0] - told[9] + 1 == pytest.approx(float(logp[2, 9]), abs=1e-5)

    written.append(9)
    processor.update_state(BatchUpdate(3, [0], [], [(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    chosen = processor.apply(logits.clone())
    assert torch.equal(chosen[1:], logits[1:])
    told = chosen[0].log_softmax(-1)
    assert told[[0, 1, 4]].numpy() == pytest.approx(logp[0, [0, 1, 4]].numpy(), abs=1e-5)
    assert float(told[2].exp()) == pytest.approx(1 - float(logp[0, [0, 1, 4]].exp().sum()), abs=1e-5)  # the sink
    assert torch.isneginf(told[[3, *range(5, 50)]]).all()

    processor.update_state(BatchUpdate(3, [0], [], []))
    assert torch.equal(processor.apply(logits.clone()), logits)
