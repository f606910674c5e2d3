"""Prefixes as questions: what a service of one-token requests is asked, and that the search finds the same with it."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.decoding.search import search
from seqrec_prompt.engines.requests import RequestEngine, answer_split
from seqrec_prompt.errors import ModelError
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import TokenLists


class PlainEngine(RequestEngine):
    """Answers with forwards of whole texts, and keeps what it was asked."""

    def __init__(self, model, context=2048, most=None):
        super().__init__(context)
        self.model, self.most, self.asked = model, most, []

    def answer(self, questions):
        if self.most is None:
            return [self._one(question) for question in questions]
        return answer_split(questions, self.most, self._each)

    def _each(self, parts):
        assert all(not part.forced and len(part.choices) <= self.most for part in parts)
        return [self._one(part) for part in parts]

    @torch.inference_mode()
    def _one(self, question):
        self.asked.append(question)
        logits = self.model(input_ids=torch.tensor([question.prefix + question.forced])).logits[0]
        rows = logits[len(question.prefix) - 1 :].log_softmax(-1).numpy()
        return np.concatenate([[rows[i, token] for i, token in enumerate(question.forced)], rows[-1, question.choices]])


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("scoring", ["renormalised", "joint"])
def test_the_search_finds_the_same_lists(tiny_engine, model, catalog, scoring, most):
    compiled = compile_catalog(TemplateConfig(), catalog, tiny_engine.tokenizer)
    prompts = [compiled.prompter.prompt(np.array(items, np.int32)) for items in ([3, 4], [7], [1, 2, 9])]
    wanted, found = (
        search(one, compiled.trie, prompts, 5, scoring=scoring) for one in (tiny_engine, PlainEngine(model, most=most))
    )
    assert found.items.tolist() == wanted.items.tolist()
    assert found.scores == pytest.approx(wanted.scores, abs=1e-3)
    assert found.outside == pytest.approx(wanted.outside, abs=1e-4)


def test_forced_tokens_of_one_run_are_one_question(model):
    engine = PlainEngine(model)
    slot = engine.prefill([np.array([5, 6], np.int32)])
    slots = engine.extend(np.zeros(2, np.int64), slot[[0, 0]], TokenLists.of([[7, 8, 9], [7]]))
    # After 7 comes 8, after 8 comes 9; after 9 two are asked for; the second run is another text.
    engine.logprobs(slots, TokenLists.of([[8], [9], [10, 11], [8]]))
    asked = [(one.prefix, one.forced, one.choices.tolist()) for one in engine.asked]
    assert asked == [([5, 6, 7], [8, 9], [10, 11]), ([5, 6, 7], [], [8])]
    engine.asked.clear()
    engine.logprobs(slots[:2], TokenLists.of([[9], [9]]))  # 9 is not what comes next: nothing is forced
    assert [one.forced for one in engine.asked] == [[], []]


def test_a_text_longer_than_the_context_is_refused_before_anything_is_asked(model):
    engine = PlainEngine(model, context=4)
    slot = engine.prefill([np.array([5, 6, 7], np.int32)])
    engine.logprobs(slot, TokenLists.of([[8]]))
    slot = engine.extend(np.zeros(1, np.int64), slot, TokenLists.of([[8]]))
    engine.asked.clear()
    with pytest.raises(ModelError, match=r"takes 5 tokens, but the model is read here up to 4"):
        engine.logprobs(slot, TokenLists.of([[9]]))
    assert not engine.asked
