"""The transformers engine against plain teacher-forced forwards of the whole model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import as_lists, build_model, logprob_rows, oracle_scores
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.search import score_catalog, search
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.engines import huggingface, packed
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.engines.models import load_tokenizer, model_hash
from seqrec_prompt.errors import ModelError
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import TokenLists
from seqrec_prompt.recommenders.llm.prompt import LLMSeqPrompt

SESSIONS = [[0], [3, 1, 2], [], [9, 5], [12, 11, 8, 7, 6], [4] * 9, [20, 21], [29, 14, 15, 16]]


@pytest.fixture(scope="module", params=[("continue", False), ("ask", True)], ids=["continue", "ask chat"])
def prompter(request, catalog, tokenizer):
    layout, chat = request.param
    return compile_template(TemplateConfig(layout=layout, chat=chat), catalog, tokenizer)


@pytest.fixture(scope="module")
def prompts(prompter):
    found = [prompter.prompt(np.array(items, np.int32)) for items in SESSIONS]
    assert len({len(prompt) for prompt in found}) > 4, "the batch must need padding"
    return found


@pytest.fixture(scope="module", params=["renormalised", "joint"])
def scoring(request):
    return request.param


@pytest.fixture(scope="module")
def expected(prompter, prompts, tiny_engine, scoring):
    """(sessions, items) scores by the oracle."""
    answers = as_lists(prompter.answers)
    return np.stack([oracle_scores(tiny_engine.model, prompt.tolist(), answers, scoring) for prompt in prompts])


@pytest.mark.parametrize(("size", "width"), [(1, 20), (3, 1), (8, 20)])
def test_search_scores_are_those_of_plain_forwards_and_exact(
    size, width, prompter, prompts, scoring, expected, tiny_engine
):
    trie, shared = compile_trie(prompter.answers), len(prompter.head)
    found = search(tiny_engine, trie, prompts[:size], 10, scoring=scoring, width=width, budget=10**6, shared=shared)
    assert found.certified.all()
    for i in range(size):
        items, scores = (a[found.offsets[i] : found.offsets[i + 1]] for a in (found.items, found.scores))
        assert len(set(items.tolist())) == 10
        np.testing.assert_allclose(scores, expected[i][items], atol=1e-4)
        np.testing.assert_allclose(scores, np.sort(expected[i])[::-1][:10], atol=1e-4)


def test_every_title_is_scored_right_when_all_are_asked_for(prompter, prompts, scoring, expected, tiny_engine):
    trie, every = compile_trie(prompter.answers), len(prompter.answers)
    found = search(tiny_engine, trie, prompts, every, scoring=scoring, budget=10**6)
    assert np.diff(found.offsets).tolist() == [len(prompter.answers)] * len(prompts)
    for i, prompt_scores in enumerate(expected):
        entries = slice(found.offsets[i], found.offsets[i + 1])
        np.testing.assert_allclose(found.scores[entries], prompt_scores[found.items[entries]], atol=1e-4)


def test_lists_do_not_depend_on_the_batch(catalog, tokenizer, tiny_engine):
    prompter = compile_template(TemplateConfig(), catalog, tokenizer)
    trie = compile_trie(prompter.answers)
    sessions = Sessions.build([f"s{i}" for i in range(8)], SESSIONS)
    alone, together = (
        LLMSeqPrompt(tiny_engine, prompter, trie, 2048, batch_size=size).recommend(sessions, 10, exclude_seen=True)
        for size in (1, 8)
    )
    assert alone.session_ids.tolist() == together.session_ids.tolist() == sessions.ids.tolist()
    assert alone.items.tolist() == together.items.tolist()
    np.testing.assert_allclose(alone.scores, together.scores, atol=1e-4)
    for i, seen in enumerate(SESSIONS):
        assert not set(alone[i].tolist()) & set(seen)


def test_prefixes_read_in_rounds_score_as_if_read_at_once(tiny_engine):
    prompts = [np.array([7, 8, 9], np.int32), np.array([30, 31, 32, 33, 34], np.int32)]
    start = tiny_engine.prefill(prompts)
    early = tiny_engine.extend(np.array([0, 0, 1]), start[[0, 0, 1]], TokenLists.of([[40, 41], [50], [60, 61, 62]]))
    middle, a, b, _, _, c = early
    later = tiny_engine.extend(
        np.array([0, 0, 0, 0]), np.array([a, b, a, middle]), TokenLists.of([[42], [51, 52, 53], [43, 44], [45]])
    )
    prefixes = [[7, 8, 9, 40, 41, 42], *([7, 8, 9, 50, 51, 52, 53][:n] for n in (5, 6, 7))]
    prefixes += [[7, 8, 9, 40, 41, 43], [7, 8, 9, 40, 41, 43, 44], [7, 8, 9, 40, 45]]
    prefixes += [[7, 8, 9, 40], [30, 31, 32, 33, 34, 60, 61, 62]]  # a session that is over can still be asked
    wanted = TokenLists.of([[11, 12, 13], [14], [15, 16], [17], [3], [4, 5], [6], [7], [8, 9]])
    got = tiny_engine.logprobs(np.array([*later, middle, c]), wanted)
    rows = [logprob_rows(tiny_engine.model, prefix, [0])[0] for prefix in prefixes]
    right = np.concatenate([row[wanted[i]] for i, row in enumerate(rows)])
    np.testing.assert_allclose(got, right, atol=1e-4)


def test_what_no_chosen_prefix_sees_is_left_out_of_attention(tiny_engine, monkeypatch):
    """Twelve branches a session, of which each session goes on from its own few, of unlike lengths."""
    widths = []
    attend = packed.Branches.attend

    def counted(self, *given):
        widths.append(self.hidden_branches.shape[2])
        return attend(self, *given)

    monkeypatch.setattr(packed.Branches, "attend", counted)
    prompts = [[7, 8, 9], [30, 31, 32, 33, 34]]
    start = tiny_engine.prefill([np.array(prompt, np.int32) for prompt in prompts])
    firsts = [[40 + i, 20 + i, 9] for i in range(12)]
    early = tiny_engine.extend(np.repeat([0, 1], 12), start[np.repeat([0, 1], 12)], TokenLists.of(firsts * 2))
    ends = early.reshape(2, 12, 3)[:, :, 2]
    chosen = [(0, 3), (0, 11), (1, 5)]  # (session, branch)
    nexts = [[50, 51], [52], [53, 54]]
    session, branch = np.array(chosen).T
    later = tiny_engine.extend(session, ends[session, branch], TokenLists.of(nexts))
    assert widths[-1] == 2 * 3 + 3, "two branches of three tokens, and the longer session's three own"
    wanted = TokenLists.of([[11, 12, 13]] * 5)
    texts = [
        [*prompts[s], *firsts[b], *tokens[:n]]
        for (s, b), tokens in zip(chosen, nexts, strict=True)
        for n in range(1, len(tokens) + 1)
    ]
    right = [logprob_rows(tiny_engine.model, text, [0])[0][[11, 12, 13]] for text in texts]
    np.testing.assert_allclose(tiny_engine.logprobs(later, wanted), np.concatenate(right), atol=1e-4)
    # And those after them still find what was left out.
    last = tiny_engine.extend(np.array([0]), ends[[0], [7]], TokenLists.of([[60]]))
    right = logprob_rows(tiny_engine.model, [*prompts[0], *firsts[7], 60], [0])[0][[11, 12, 13]]
    np.testing.assert_allclose(tiny_engine.logprobs(last, wanted.take(np.array([0]))), right, atol=1e-4)


def test_sessions_that_are_kept_may_pause(tiny_engine):
    """Of six sessions, in groups by length, one goes on alone; then the others do, each after its own tokens."""
    prompts = [(20 + np.arange(i, i + size) % 90).astype(np.int32) for i, size in enumerate((3, 3, 4, 4, 400, 420))]
    slots = tiny_engine.prefill(prompts, keep=True)
    first = tiny_engine.extend(np.array([2]), slots[[2]], TokenLists.of([[40, 41]]))
    others = np.array([0, 1, 3, 4, 5])
    later = tiny_engine.extend(others, slots[others], TokenLists.of([[50, i] for i in range(5)]))
    again = tiny_engine.extend(np.array([2]), first[[1]], TokenLists.of([[42]]))
    texts = [[*prompts[row], 50, i] for i, row in enumerate(others)] + [[*prompts[2], 40, 41, 42]]
    wanted = TokenLists.of([[11, 12, 13]] * 6)
    right = [logprob_rows(tiny_engine.model, [int(t) for t in text], [0])[0][[11, 12, 13]] for text in texts]
    got = tiny_engine.logprobs(np.array([*later[1::2], again[0]]), wanted)
    np.testing.assert_allclose(got, np.concatenate(right), atol=1e-4)


@pytest.mark.parametrize("shared", [1, 3, 9])
def test_what_prompts_share_is_read_once(tiny_engine, shared, monkeypatch):
    """Whatever was shared in an earlier call, and also when a prompt is nothing but the shared beginning."""
    beginnings = [[7, 8, 9], [7, 8, 9], [12, 13, 14]]
    wanted = TokenLists.of([list(range(20)), list(range(20)), list(range(20))])
    read = []
    forward = tiny_engine.body.forward

    def counted(**given):
        if "readings" in given:  # not the plain forwards of the comparison
            read.append(given["input_ids"].shape[1])
        return forward(**given)

    monkeypatch.setattr(tiny_engine.body, "forward", counted)
    for beginning in beginnings:
        prompts = [[*beginning, 30, 31], beginning, [*beginning, 40, 41, 42, 43]]
        slots = tiny_engine.prefill([np.array(prompt, np.int32) for prompt in prompts], shared)
        rows = [logprob_rows(tiny_engine.model, prompt, [0])[0][:20] for prompt in prompts]
        np.testing.assert_allclose(tiny_engine.logprobs(slots, wanted), np.concatenate(rows), atol=1e-4)
    kept = min(shared, 2)
    own = 5 + 3 + 7 - 3 * kept
    assert read == [kept, own, own, kept, own], "the beginning is read when it is new, without padding"


def test_every_title_scores_as_a_plain_forward_of_it_does(catalog, tokenizer, tiny_engine, scoring):
    prompter = compile_template(TemplateConfig(), catalog, tokenizer)
    trie = compile_trie(prompter.answers)
    prompt = prompter.prompt(np.array([3, 4], np.int32))
    found = score_catalog(tiny_engine, trie, prompt, scoring=scoring, block=300)[trie.leaf_of]
    titles = as_lists(prompter.answers)
    np.testing.assert_allclose(found, oracle_scores(tiny_engine.model, prompt.tolist(), titles, scoring), atol=1e-4)


def test_recommendations_for_a_prepared_dataset_are_exact(dataset_dir, tiny_engine, tokenizer):
    data = Dataset.load(dataset_dir)
    prompter = compile_template(TemplateConfig(max_items=3), data.catalog, tokenizer)
    trie = compile_trie(prompter.answers, data.popularity)
    part = data.split.test.prompts.take(np.arange(2))
    lists = LLMSeqPrompt(tiny_engine, prompter, trie, 2048).recommend(part, 5, exclude_seen=False)
    for i in range(2):
        prompt = prompter.prompt(part[i][-3:]).tolist()
        scores = oracle_scores(tiny_engine.model, prompt, as_lists(prompter.answers))
        np.testing.assert_allclose(np.sort(scores)[::-1][:5], scores[lists[i]], atol=1e-4)
    assert lists.certified.all()


def test_a_merged_adapter_scores_as_the_adapter_does(tiny_model, tmp_path, catalog, tokenizer):
    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "down_proj"]
    wrapped = get_peft_model(
        build_model(len(tokenizer)), LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    unmerged = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    engine = HuggingFaceEngine.load(str(tiny_model), adapter=tmp_path / "adapter")

    prompter = compile_template(TemplateConfig(), catalog, tokenizer)
    prompt = prompter.prompt(np.array([1, 16], np.int32))
    every = TokenLists(np.arange(len(tokenizer), dtype=np.int32), np.array([0, len(tokenizer)]))
    adapted = logprob_rows(unmerged, prompt.tolist(), [0])[0]
    np.testing.assert_allclose(engine.logprobs(engine.prefill([prompt]), every), adapted, atol=1e-4)
    with unmerged.disable_adapter():
        assert np.abs(logprob_rows(unmerged, prompt.tolist(), [0])[0] - adapted).max() > 0.1

    scores = oracle_scores(unmerged, prompt.tolist(), as_lists(prompter.answers))
    found = search(engine, compile_trie(prompter.answers), [prompt], 5)
    np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:5], atol=1e-4)


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_branches_that_see_each_other_are_found_at_load(tokenizer, monkeypatch, dtype):
    """In half precision, too, where rounding alone is large, and larger the larger the weights are."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval().to(dtype)
    HuggingFaceEngine(model, tokenizer)
    branch = packed.Group.branch

    def seeing_all(group, *given):
        read = branch(group, *given)
        return replace(read, hidden_branches=torch.ones_like(read.hidden_branches).triu(1))

    monkeypatch.setattr(packed.Group, "branch", seeing_all)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM gives other probabilities when read as a tree"):
        HuggingFaceEngine(model, tokenizer)


def test_a_model_that_caps_its_logits_is_refused(tokenizer):
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=1.0))
    with pytest.raises(ModelError, match=r"Gemma2ForCausalLM.*logits.*\n?.*Choose a model"):
        HuggingFaceEngine(model, tokenizer)


@pytest.mark.parametrize(("window", "fits"), [(12, True), (11, False), (4, False)])
def test_a_sliding_window_is_the_longest_that_is_read(tokenizer, window, fits):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window)).eval()
    engine = HuggingFaceEngine(model, tokenizer)
    prompt, run = list(range(10, 19)), [20, 21, 22]

    def read():
        slot = engine.extend(np.array([0]), engine.prefill([np.array(prompt, np.int32)]), TokenLists.of([run]))
        return engine.logprobs(slot[-1:], TokenLists.of([list(range(64))]))

    if not fits:
        with pytest.raises(ModelError, match=f"here up to {window}"):
            read()
    else:
        np.testing.assert_allclose(read(), logprob_rows(model, prompt + run, [0])[0], atol=1e-4)


def test_the_hash_names_the_weights_not_the_file(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = load_tokenizer(str(tiny_model))
    for name in ("again", "config", "tokenizer"):
        tokenizer.save_pretrained(tmp_path / name)
    model.save_pretrained(tmp_path / "again")
    model.save_pretrained(tmp_path / "tokenizer")
    vocabulary = tmp_path / "tokenizer" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text() + "\n")
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5.0}
    model.save_pretrained(tmp_path / "config")
    assert model_hash(str(tmp_path / "again")) == model_hash(str(tiny_model))
    assert model_hash(str(tmp_path / "config")) != model_hash(str(tiny_model))
    assert model_hash(str(tmp_path / "tokenizer")) != model_hash(str(tiny_model))


@pytest.mark.parametrize("matrix", ["lm_head", "model.embed_tokens", "model.layers.1.mlp.down_proj"])
def test_the_hash_changes_when_a_matrix_was_trained(matrix, tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.get_submodule(matrix).weight += 0.01
    model.save_pretrained(tmp_path / "trained")
    assert model_hash(str(tmp_path / "trained")) != model_hash(str(tiny_model))


@pytest.mark.parametrize("load", [HuggingFaceEngine.load, load_tokenizer, model_hash])
def test_a_missing_model_is_an_error_with_the_next_step(load, tmp_path):
    with pytest.raises(ModelError, match=r"(?s)absent.: there is no such directory.*Give a hub name.*smollm2"):
        load(str(tmp_path / "absent"))


def test_a_directory_without_weights_has_no_hash(tiny_model, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(ModelError, match="safetensors"):
        model_hash(str(tmp_path))


def test_loading_what_is_no_adapter_is_an_error(tiny_model, tmp_path):
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        HuggingFaceEngine.load(str(tiny_model), adapter=tmp_path)


def test_groups_of_unlike_prompts_score_as_one_at_a_time(prompter, prompts, scoring, tiny_engine, monkeypatch):
    """Many small groups, attention in slices, few logits at once: the lists stay those of plain sessions."""
    trie = compile_trie(prompter.answers)
    alone = [search(tiny_engine, trie, [prompt], 10, scoring=scoring) for prompt in prompts]
    monkeypatch.setitem(huggingface.PREFILL_TOKENS, "cpu", 2 * max(map(len, prompts)))
    monkeypatch.setattr(packed, "SCORES", 1000)
    monkeypatch.setattr(huggingface, "LOGITS_ELEMENTS", 1000)
    together = search(tiny_engine, trie, prompts, 10, scoring=scoring)
    assert len(tiny_engine._trees.groups) > 2
    assert together.items.tolist() == np.concatenate([found.items for found in alone]).tolist()
    np.testing.assert_allclose(together.scores, np.concatenate([found.scores for found in alone]), atol=1e-4)


def test_relative_logprobs_differ_from_the_others_by_a_number_a_slot(tiny_engine, monkeypatch):
    """Computed alone where they are few, read off the whole vocabulary where they are many."""
    slots = tiny_engine.prefill([np.array([7, 8, 9], np.int32), np.array([30, 31], np.int32)])
    wanted = TokenLists.of([[11, 12, 13], list(range(tiny_engine.head.weight.shape[0]))])
    apart = tiny_engine.logprobs(slots, wanted, relative=True) - tiny_engine.logprobs(slots, wanted)
    assert np.ptp(apart[:3]) < 1e-5 < abs(apart[0])
    np.testing.assert_allclose(apart[3:], 0, atol=1e-5)
