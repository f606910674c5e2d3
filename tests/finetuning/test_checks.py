"""Checks before training: each is given the fault it looks for."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import PlainTrie

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.finetuning.checks import capitals, leakage, mismatch, round_trip, short_lists, starved
from seqrec_prompt.finetuning.estimate import Shape, duration, training_bytes, training_flops
from seqrec_prompt.finetuning.validate import ValidateConfig, validate
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import TokenLists


def dataset(train, test, *, titles=None, train_times=None, target_times=None, split="temporal", ids=None):
    """Items 0..9; test sessions are prompt and target in one list."""
    titles = titles or [f"Title {i}" for i in range(10)]
    held = Holdout.of_last_items(Sessions.build(ids or [f"b{i}" for i in range(len(test))], test))
    sessions = Sessions.build([f"a{i}" for i in range(len(train))], train)
    if train_times is not None:
        sessions = replace(sessions, times=np.array(train_times, np.float64))
        held = replace(held, target_times=np.array(target_times, np.float64))
    made = manifest("prepare", {"split": split}, {}, {"hash": "x"})
    return Dataset(Catalog([str(i) for i in range(len(titles))], titles), Split(sessions, held), made)


def told(findings):
    return [(finding.what, finding.advice) for finding in findings]


def test_a_clean_split_leaks_nothing():
    data = dataset([[0, 1, 2], [3, 4]], [[0, 1, 4], [3, 2]])
    assert told(leakage(data)) == [("no test session is a train session", "")]


def test_a_test_session_that_is_a_train_session_is_found():
    data = dataset([[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [3, 4, 6]])
    (what, advice), *_ = told(leakage(data))
    assert what.startswith("1 of 2 test sessions, target included, are also a train session")
    assert advice


def test_a_session_on_both_sides_is_found_unless_the_split_means_it():
    both = [[0, 1]], [[0, 1, 2], [3, 4]]
    (what, _), *_ = told(leakage(dataset(*both, ids=["a0", "b1"])))
    assert what == "1 of 2 test sessions have the id of a train session"
    assert not any(
        "id of a train" in w for w, _ in told(leakage(dataset(*both, ids=["a0", "b1"], split="leave_one_out")))
    )


def test_training_on_the_future_is_found():
    late = {"train_times": [1, 2, 30, 40], "target_times": [20, 50]}
    data = dataset([[0, 1], [3, 4]], [[0, 2], [3, 5]], **late)
    (what, advice), *_ = told(leakage(data))
    assert what.startswith("50% of the test targets are older")
    assert "temporal" in advice
    usual = dataset([[0, 1], [3, 4]], [[0, 2], [3, 5]], split="leave_one_out", **late)
    assert all(not advice for _, advice in told(leakage(usual)))


def test_targets_that_training_never_has_are_counted():
    data = dataset([[0, 1], [2, 3]], [[0, 9], [1, 2], [3, 8]])
    assert ("2 of 3 test targets are items that no train session has", "") in told(leakage(data))


@pytest.mark.parametrize(
    ("titles", "found"), [(["RED CUP", "BLUE CUP", "42"], True), (["RED CUP", "Tea", "pot"], False)]
)
def test_titles_in_capitals_are_found(titles, found):
    assert bool(told(capitals(dataset([[0, 1]], [[0, 1]], titles=titles)))) is found


def test_the_tiny_tokenizer_returns_every_title(tokenizer, catalog, dataset_dir):
    data = Dataset.load(dataset_dir)
    prompter = compile_template(TemplateConfig(), catalog, tokenizer)
    assert told(round_trip(data, prompter, tokenizer)) == [
        ("all 30 titles come back from the tokenizer as they went in", "")
    ]


def test_titles_that_a_tokenizer_changes_are_shown(tokenizer, catalog, dataset_dir):
    class Lowered:
        """A tokenizer that folds case, as uncased ones do."""

        def __call__(self, *args, **kwargs):
            return tokenizer(*args, **kwargs)

        def batch_decode(self, *args, **kwargs):
            return [text.lower() for text in tokenizer.batch_decode(*args, **kwargs)]

    data = Dataset.load(dataset_dir)
    prompter = compile_template(TemplateConfig(), catalog, tokenizer)
    texts = catalog.texts()
    changed = [text for text in texts if text != text.lower()]
    ((what, advice),) = told(round_trip(data, prompter, Lowered()))
    assert what.startswith(f"{len(changed)} of 30 titles come back")
    assert f"{changed[0]!r} → {changed[0].lower()!r}" in what
    assert advice


def plain_beam(sequences, mass, width):
    """A beam over nested dictionaries, decision after decision; returns the titles it ends with."""
    trie = PlainTrie(sequences)

    def below(prefix):
        return sum(m for s, m in zip(sequences, mass, strict=True) if tuple(s[: len(prefix)]) == prefix)

    def follow(prefix, node):
        while len(node) == 1:
            ((token, node),) = node.items()
            prefix = (*prefix, token)
        return prefix, node

    beam = [follow((), trie.root)]
    while any(node for _, node in beam):
        opened = []
        for prefix, node in beam:
            opened += [follow((*prefix, token), child) for token, child in node.items()] if node else [(prefix, node)]
        beam = sorted(opened, key=lambda one: -below(one[0]))[:width]
    return [list(prefix) for prefix, _ in beam]


@pytest.mark.parametrize("seed", range(8))
def test_starvation_is_what_a_plain_beam_loses(seed):
    draw = np.random.default_rng(seed)
    titles = {tuple(draw.integers(1, 4, draw.integers(1, 6)).tolist()) for _ in range(40)}
    sequences = [[*title, 0] for title in sorted(titles)]
    # Counts without ties, so that there is one best list.
    popularity = draw.permutation(len(sequences)).astype(np.int64) * 3
    width = 4
    trie = compile_trie(TokenLists.of(sequences), popularity)
    mass = popularity + 1
    best = {tuple(sequences[i]) for i in np.argsort(-mass)[:width]}
    kept = {tuple(s) for s in plain_beam(sequences, mass.tolist(), width)}
    assert starved(trie, popularity, width) == len(best - kept)


def test_a_popular_title_behind_a_rare_first_word_is_lost():
    # Two titles of 5 under one first word each beat the single title of 7 at the root, for a beam of one.
    trie = compile_trie(TokenLists.of([[1, 1, 0], [1, 2, 0], [2, 0]]))
    assert starved(trie, np.array([4, 4, 6]), 1) == 1
    assert starved(trie, np.array([4, 4, 6]), 2) == 0


def test_lists_longer_than_the_catalog_are_found():
    data = dataset([[0, 1]], [[0, 1]])
    trie = compile_trie(TokenLists.of([[i + 1, 0] for i in range(10)]))
    assert told(short_lists(data, trie, 11)) == [
        ("lists of 11 cannot be filled: the catalog has 10 items", "recommend with --k 10")
    ]


def test_an_adapter_of_another_template_or_catalog_is_found():
    data = dataset([[0, 1]], [[0, 1]])
    template = TemplateConfig()
    trained = {"config": {"template": template.resolved()}, "inputs": {"catalog": data.catalog.hash}}
    assert told(mismatch(trained, data, template)) == []
    (one,) = told(mismatch(trained, data, TemplateConfig(max_items=3)))
    assert "max_items: 20 → 3" in one[0]
    (other,) = told(mismatch(trained | {"inputs": {"catalog": "y"}}, data, template))
    assert other[0] == "the adapter was trained on another catalog"


def test_the_shape_of_a_model_is_read_without_its_weights(tiny_engine, tiny_model):
    shape = Shape.of(str(tiny_model))
    assert shape.parameters == sum(weight.numel() for weight in tiny_engine.model.parameters())
    assert (shape.layers, shape.hidden) == (2, 64)


def test_the_shape_of_a_model_that_sees_pictures_too_is_that_of_its_text(tmp_path):
    from transformers import Gemma3Config

    text = {"vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Gemma3Config(text_config=text, vision_config=seeing).save_pretrained(tmp_path)
    shape = Shape.of(str(tmp_path))
    assert (shape.layers, shape.hidden, shape.vocabulary) == (3, 32, 70)


def test_memory_and_work_by_hand():
    shape = Shape(parameters=1000, layers=2, hidden=10, vocabulary=100)
    # weights 2·1000; adapters 2·4·14·10 parameters of 16 bytes; activations 2·34·3·5·10; no logits
    assert training_bytes(shape, 3, 5, 4, half=True, whole_vocabulary=False) == 2000 + 1120 * 16 + 10_200
    # and logits with their gradient, 8 bytes each of 3·5·100
    whole = training_bytes(shape, 3, 5, 4, half=True, whole_vocabulary=True)
    assert whole - training_bytes(shape, 3, 5, 4, half=True, whole_vocabulary=False) == 12_000
    assert training_flops(shape, 50) == 200_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 seconds"), (80, "80 seconds"), (600, "10 minutes"), (7200, "2 hours"), (400_000, "5 days")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == f"about {text}"


def test_validate_ends_with_findings_and_an_estimate(tiny_model, dataset_dir, capsys):
    found = validate(ValidateConfig(data=dataset_dir, model=str(tiny_model), context=1024, k=31))
    report = found["text"]
    end = report[report.index("findings (! asks for a change):") :]
    assert "! lists of 31 cannot be filled: the catalog has 30 items\n    → recommend with --k 30" in end
    assert "one pass over" in end
    assert capsys.readouterr().out.endswith(end + "\n")
    for finding in found["findings"]:
        assert f" {finding['what']}" in end
    assert [one["advice"] for one in found["findings"] if "of 31 cannot" in one["what"]] == ["recommend with --k 30"]
