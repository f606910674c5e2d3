"""Training examples: every item is learned as often as it should be, and labels stand on the right tokens."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PlainTrie

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.finetuning.examples import Collator, windows
from seqrec_prompt.prompting.prompter import Prompter, compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import TokenLists

N_ITEMS = 8


def prompter_of(line_lengths, answer_lengths, max_items, head=3, tail=2):
    """A prompter of made-up tokens: only lengths matter to windows."""
    lists = [TokenLists.of([[1] * n for n in lengths]) for lengths in (line_lengths, answer_lengths)]
    template = TemplateConfig(max_items=max_items)
    return Prompter(template, np.ones(head, np.int32), np.ones(tail, np.int32), *lists, None)


@st.composite
def settings_of_windows(draw):
    sizes = st.lists(st.integers(1, 9), min_size=N_ITEMS, max_size=N_ITEMS)
    sessions = draw(st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=14), min_size=1, max_size=5))
    prompter = prompter_of(draw(sizes), draw(sizes), draw(st.integers(1, 6)))
    return Sessions.build([f"s{i}" for i in range(len(sessions))], sessions), prompter, draw(st.integers(5, 60))


def grouped(examples):
    """Windows of each session id, in order."""
    found = {}
    for name, items in zip(examples.ids, examples, strict=True):
        found.setdefault(name, []).append(items.tolist())
    return found


@pytest.mark.parametrize("objective", ["all_items", "catalog"])
@given(case=settings_of_windows())
@settings(max_examples=300, deadline=None)
def test_every_item_but_the_first_is_a_target_exactly_once(objective, case):
    sessions, prompter, context = case
    size = prompter.lines.lengths
    room = context - len(prompter.head) - len(prompter.tail)
    whole = {name: items.tolist() for name, items in zip(sessions.ids, sessions, strict=True) if len(items) > 1}
    if any(size[a] + size[b] > room for s in whole.values() for a, b in pairwise(s)):
        with pytest.raises(TemplateError, match=f"do not fit a context of {context} tokens"):
            windows(sessions, prompter, context, objective)
        return
    found = grouped(windows(sessions, prompter, context, objective))
    assert list(found) == list(whole)
    for name, parts in found.items():
        # Overlapping in one item, they give the session back: so each later item is a target once, after the right one.
        joined = parts[0]
        for part in parts[1:]:
            assert part[0] == joined[-1]
            joined = joined + part[1:]
        assert joined == whole[name]
        at = 0
        for part in parts:
            assert 2 <= len(part) <= prompter.template.max_items + 1
            assert sum(size[part]) <= room
            at += len(part) - 1
            if at < len(joined) - 1:  # it ended early only because it was full
                full = len(part) == prompter.template.max_items + 1
                assert full or sum(size[part]) + size[joined[at + 1]] > room


@given(case=settings_of_windows())
@settings(max_examples=300, deadline=None)
def test_last_item_takes_the_newest_items_of_each_session(case):
    sessions, prompter, context = case
    size, longest = prompter.lines.lengths, int(prompter.answers.lengths.max())
    room = context - len(prompter.head) - len(prompter.tail) - longest
    if room < size.max():
        with pytest.raises(TemplateError, match="Raise it with --context"):
            windows(sessions, prompter, context, "last_item")
        return
    found = grouped(windows(sessions, prompter, context, "last_item"))
    for name, items in zip(sessions.ids, sessions, strict=True):
        if len(items) == 1:
            assert name not in found
            continue
        (part,) = found[name]
        kept = len(part) - 1
        assert part == items[len(items) - len(part) :].tolist()
        assert 1 <= kept <= prompter.template.max_items
        assert sum(size[part[:-1]]) <= room
        if kept < min(prompter.template.max_items, len(items) - 1):
            assert sum(size[items[-kept - 2 : -1]]) > room


def test_sessions_of_one_item_give_no_example():
    sessions = Sessions.build(["a", "b"], [[1], [2]])
    for objective in ("last_item", "all_items", "catalog"):
        assert len(windows(sessions, prompter_of([2] * N_ITEMS, [2] * N_ITEMS, 3), 50, objective)) == 0


CASES = [
    ("last_item", "ask", False),
    ("last_item", "ask", True),
    ("last_item", "continue", False),
    ("all_items", "continue", False),
    ("all_items", "continue", True),
    ("catalog", "continue", False),
    ("catalog", "ask", True),
]
PAD = 0


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request, catalog, tokenizer):
    """Objective, compiled template, trie, and a batch of windows of different lengths."""
    objective, layout, chat = request.param
    prompter = compile_template(TemplateConfig(layout=layout, chat=chat), catalog, tokenizer)
    trie = compile_trie(prompter.answers)
    draw = np.random.default_rng(3)
    rows = [draw.integers(len(catalog), size=n).tolist() for n in (2, 7, 3, 12)] + [[4, 4], [6, 7, 5, 3]]
    return objective, prompter, trie, rows


def pieces(prompter, row):
    """The example as (tokens, item or None) pieces: an item stands with the piece that is its training target."""
    ask = prompter.template.layout == "ask"
    history = row[:-1] if ask else row
    parts = [(prompter.head.tolist(), None)] + [(prompter.lines[item].tolist(), item) for item in history]
    if ask:
        parts = [(tokens, None) for tokens, _ in parts]
        parts += [(prompter.tail.tolist(), None), (prompter.answers[row[-1]].tolist(), row[-1])]
    else:
        parts[1] = (parts[1][0], None)  # nothing stands before the first item: it is no target
    return parts


def targets(objective, prompter, row):
    """(first position, item) of each target, and all tokens."""
    tokens, found = [], []
    for part, item in pieces(prompter, row):
        if item is not None:
            found.append((len(tokens), item))
        tokens += part
    return tokens, found[-1:] if objective == "last_item" else found


def test_labels_stand_on_the_targets_tokens_only(case):
    objective, prompter, trie, rows = case
    batch = Collator(prompter, objective, trie, PAD)([{"items": row} for row in rows])
    longest = 0
    for i, row in enumerate(rows):
        tokens, found = targets(objective, prompter, row)
        longest = max(longest, len(tokens))
        labels = [-100] * batch["input_ids"].shape[1]
        for start, item in found:
            answer = prompter.answers[item].tolist()
            assert tokens[start : start + len(answer)] == answer
            taught = answer[:1] if objective == "catalog" else answer
            labels[start : start + len(taught)] = taught
        padding = batch["input_ids"].shape[1] - len(tokens)
        assert batch["input_ids"][i].tolist() == tokens + [PAD] * padding
        assert batch["attention_mask"][i].tolist() == [1] * len(tokens) + [0] * padding
        assert batch["labels"][i].tolist() == labels
    assert batch["input_ids"].shape == batch["labels"].shape == (len(rows), longest)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_the_labelled_text_is_the_title_and_its_end(catalog, tokenizer):
    titles = catalog.texts()
    for objective, layout, end in (("last_item", "ask", "<|im_end|>"), ("all_items", "continue", "\n")):
        prompter = compile_template(TemplateConfig(layout=layout), catalog, tokenizer)
        collate = Collator(prompter, objective, compile_trie(prompter.answers), PAD)
        for item in range(len(catalog)):
            batch = collate([{"items": [3, item]}, {"items": list(range(9))}])
            labels = batch["labels"][0]
            assert tokenizer.decode(labels[labels != -100]) == titles[item] + end
            whole = tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0] == 1])
            assert whole.startswith(f"One shopping session, one item per line:\n{titles[3]}\n")
            assert whole.endswith(titles[item] + end)


def test_decisions_are_the_branches_of_a_plain_walk(case):
    _, prompter, trie, rows = case
    batch = Collator(prompter, "catalog", trie, PAD)([{"items": row} for row in rows])
    plain = PlainTrie(prompter.answers)
    expected = []
    for i, row in enumerate(rows):
        for start, item in targets("catalog", prompter, row)[1]:
            title = prompter.answers[item].tolist()
            expected += [(i, start + at - 1, title[:at], title[at], allowed) for at, allowed in plain.decisions(title)]
    found = []
    for row, state, node, right in batch["decisions"].tolist():
        children = trie.token[trie.children(node)].tolist()
        found.append((row, state, trie.path(node).tolist(), children[right], sorted(children)))
    assert sorted(found) == sorted(expected)
    assert (batch["labels"] >= 0).sum() == sum(len(targets("catalog", prompter, row)[1]) for row in rows)


def test_only_the_catalog_objective_has_decisions(case):
    objective, prompter, trie, rows = case
    batch = Collator(prompter, objective, trie, PAD)([{"items": row} for row in rows])
    assert ("decisions" in batch) == (objective == "catalog")
