"""Cut titles against what they must keep: the beginning of the title, and the difference to every other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.finetuning.pairs import PairsConfig
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.prompting.titles import shorten
from seqrec_prompt.ragged import TokenLists

END = 0
catalogs = st.lists(st.lists(st.integers(1, 3), max_size=9), min_size=1, max_size=25)


def cut(titles, most):
    ended = TokenLists.of([[*title, END] for title in titles])
    return [part.tolist() for part in shorten(ended, most, np.array([END], np.int32))]


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [[1, 2, 3, 0], [1, 2, 2, 0], [2, 0], [1, 2, 0], [1, 2, 2, 0]]),
        (4, [[1, 2, 3, 1, 0], [1, 2, 2, 1, 0], [2, 3, 1, 1, 0], [1, 2, 0], [1, 2, 2, 1, 0]]),
        (9, [[1, 2, 3, 1, 1, 0], [1, 2, 2, 1, 1, 0], [2, 3, 1, 1, 0], [1, 2, 0], [1, 2, 2, 1, 1, 0]]),
    ],
)
def test_a_title_is_cut_where_it_is_told_apart_or_later(most, expected):
    # The fourth is the beginning of three others, the second and the fifth are one title.
    assert cut([[1, 2, 3, 1, 1], [1, 2, 2, 1, 1], [2, 3, 1, 1], [1, 2], [1, 2, 2, 1, 1]], most) == expected


@given(catalogs, st.integers(1, 6))
def test_cut_titles_begin_as_the_whole_and_are_as_different(titles, most):
    short = cut(titles, most)
    for title, part in zip(titles, short, strict=True):
        assert part[-1] == END
        assert part[:-1] == title[: len(part) - 1]
        assert len(part) == len(title) + 1 or len(part) > most
    for one, left in zip(titles, short, strict=True):
        for other, right in zip(titles, short, strict=True):
            assert (left == right) == (one == other)


@given(catalogs, st.integers(1, 6))
def test_no_more_is_kept_than_is_needed(titles, most):
    whole = [[*title, END] for title in titles]
    for title, part in zip(whole, cut(titles, most), strict=True):
        kept = len(part) - 1
        if kept > most and part != title:  # one token less, and another title would begin alike
            assert any(other != title and other[: kept - 1] == title[: kept - 1] for other in whole)


@pytest.mark.parametrize("layout", ["continue", "ask"])
def test_sessions_and_answers_are_written_with_cut_titles(layout, catalog, tokenizer):
    whole = compile_template(TemplateConfig(layout=layout), catalog, tokenizer)
    short = compile_template(TemplateConfig(layout=layout, title_tokens=2), catalog, tokenizer)
    assert len(short.lines.tokens) < len(whole.lines.tokens)
    for kind in ("lines", "answers"):
        for long, part in zip(getattr(whole, kind), getattr(short, kind), strict=True):
            kept = len(part) - 1
            assert part[:kept].tolist() == long[:kept].tolist()
            assert part[-1] == long[-1]
    prompt = short.prompt(np.array([3, 14], np.int32)).tolist()
    assert prompt == [*short.head, *short.lines[3], *short.lines[14], *short.tail]


def test_cut_titles_lead_to_the_same_items(catalog, tokenizer, tmp_path):
    leaves = []
    for most in (None, 2):
        template = TemplateConfig(title_tokens=most)
        trie = compile_catalog(template, catalog, tokenizer, cache=tmp_path).trie
        leaves.append([np.flatnonzero(trie.leaf_of == trie.leaf_of[item]).tolist() for item in range(len(catalog))])
    assert leaves[0] == leaves[1]


def test_cut_titles_are_cut_together(catalog, tokenizer, tmp_path):
    compiled = compile_catalog(TemplateConfig(title_tokens=2), catalog, tokenizer, cache=tmp_path)
    with pytest.raises(TemplateError, match="compile the whole catalog"):
        compiled.add(catalog, tokenizer)


def test_pairs_of_text_have_no_tokens_to_cut(tmp_path):
    with pytest.raises(ValueError, match=r"template\.title_tokens"):
        PairsConfig(data=tmp_path, out=tmp_path / "pairs", template=TemplateConfig(layout="ask", title_tokens=4))
