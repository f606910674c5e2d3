"""The compiled trie against nested dictionaries, over random catalogs."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import PlainTrie

from seqrec_prompt.decoding.trie import CatalogTrie, compile_trie
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.ragged import TokenLists

END = 300
# Ids around the byte borders: a sort by little-endian bytes, or by one byte, would not survive them.
TOKENS = (0, 1, 2, 255, 256, 65_535, 65_536, 151_000)
bodies = st.lists(st.sampled_from(TOKENS[:3]) | st.sampled_from(TOKENS), max_size=8)
long_bodies = st.builds(lambda body, times: body * times, bodies, st.integers(2, 30))
titles = (bodies | long_bodies).map(lambda body: [*body, END])
catalogs = st.lists(titles, min_size=1, max_size=25) | st.lists(titles, min_size=1, max_size=6).flatmap(
    lambda some: st.lists(st.sampled_from(some), min_size=1, max_size=12)  # many duplicates
)


def build(catalog: list[list[int]], priority: list[int] | None = None) -> CatalogTrie:
    return compile_trie(TokenLists.of(catalog), None if priority is None else np.array(priority, np.int64))


def walk(trie: CatalogTrie, sequence: list[int]) -> list[int]:
    """Nodes from the root to the leaf that `sequence` leads to, one token compared after the other."""
    nodes, at = [0], 0
    while trie.n_children[nodes[-1]]:
        (child,) = [int(c) for c in trie.children(nodes[-1]) if trie.token[c] == sequence[at]]
        edge = trie.edge(child).tolist()
        assert sequence[at : at + len(edge)] == edge
        nodes.append(child)
        at += len(edge)
    assert at == len(sequence)
    return nodes


def depth_first(plain: dict, prefix: tuple[int, ...] = ()):
    yield prefix, plain
    for token, below in plain.items():
        yield from depth_first(below, (*prefix, token))


@given(catalogs)
@example([[END]])
@example([[END]] * 3)
@example([[1, 2, END], [1, 2, END], [1, END], [1, 2, 3, END]])
def test_every_item_is_reached_from_the_root_and_found_in_its_leaf(catalog):
    trie = build(catalog)
    for item, sequence in enumerate(catalog):
        leaf = walk(trie, sequence)[-1]
        assert trie.hi[leaf] == trie.lo[leaf] + 1
        assert trie.lo[leaf] == trie.leaf_of[item]
        assert item in trie.items_at(trie.lo[leaf])
        assert trie.path(leaf).tolist() == sequence


@given(catalogs)
def test_leaves_share_out_all_items_and_lose_none(catalog):
    trie = build(catalog)
    listed = [int(item) for leaf in range(trie.n_leaves) for item in trie.items_at(leaf)]
    assert sorted(listed) == list(range(len(catalog)))
    assert trie.n_items == len(catalog)
    assert trie.n_leaves == len({tuple(sequence) for sequence in catalog})
    for leaf in range(trie.n_leaves):
        assert {tuple(catalog[item]) for item in trie.items_at(leaf)} == {tuple(trie.sequences[leaf].tolist())}


@given(catalogs)
def test_nodes_are_the_branching_points_and_ends_of_a_plain_trie(catalog):
    trie = build(catalog)
    plain = {
        prefix: children
        for prefix, children in depth_first(PlainTrie(catalog).root)
        if not prefix or len(children) != 1
    }
    nodes = {tuple(trie.path(node).tolist()): node for node in range(len(trie))}
    assert len(nodes) == len(trie)
    assert set(nodes) == set(plain)
    for prefix, children in plain.items():
        node = nodes[prefix]
        assert trie.depth[node] == len(prefix)
        assert trie.token[trie.children(node)].tolist() == sorted(children)
        assert (trie.parent[trie.children(node)] == node).all()


@given(catalogs)
def test_leaf_ranges_hold_the_titles_that_begin_with_the_nodes_path(catalog):
    trie = build(catalog)
    distinct = sorted({tuple(sequence) for sequence in catalog})
    for node in range(len(trie)):
        path = tuple(trie.path(node).tolist())
        below = [rank for rank, sequence in enumerate(distinct) if sequence[: len(path)] == path]
        assert below == list(range(trie.lo[node], trie.hi[node]))
        children = trie.children(node)
        assert all(trie.hi[a] == trie.lo[b] for a, b in pairwise(children))


@given(catalogs)
def test_edges_of_the_way_to_a_leaf_add_up_to_its_sequence(catalog):
    trie = build(catalog)
    for sequence in catalog:
        edges = [trie.edge(node).tolist() for node in walk(trie, sequence)[1:]]
        assert all(edges)
        assert [token for edge in edges for token in edge] == sequence


@given(catalogs)
def test_decisions_are_where_a_plain_walk_has_a_choice(catalog):
    trie = build(catalog)
    plain = PlainTrie(catalog)
    ptr, position, node = trie.decisions
    assert len(ptr) == trie.n_leaves + 1
    for item, sequence in enumerate(catalog):
        entries = slice(ptr[trie.leaf_of[item]], ptr[trie.leaf_of[item] + 1])
        expected = plain.decisions(sequence)
        assert position[entries].tolist() == [at for at, _ in expected]
        assert [trie.token[trie.children(n)].tolist() for n in node[entries]] == [tokens for _, tokens in expected]


@given(catalogs, st.data())
def test_priority_then_catalog_order_ranks_the_items_of_a_leaf(catalog, data):
    priority = data.draw(st.lists(st.integers(0, 3), min_size=len(catalog), max_size=len(catalog)))
    trie = build(catalog, priority)
    for leaf in range(trie.n_leaves):
        same = [i for i, sequence in enumerate(catalog) if sequence == trie.sequences[leaf].tolist()]
        assert trie.items_at(leaf).tolist() == sorted(same, key=lambda item: (-priority[item], item))


def test_priority_does_not_reorder_different_titles():
    catalog = [[2, END], [1, END], [1, END]]
    plain, ranked = build(catalog), build(catalog, [0, 1, 9])
    assert plain.items_at(0).tolist() == [1, 2]
    assert ranked.items_at(0).tolist() == [2, 1]
    assert ranked.items_at(1).tolist() == [0]


def test_one_deep_title_does_not_exhaust_the_stack():
    stairs = [[1] * n + [END] for n in range(1500)]
    trie = build(stairs)
    assert trie.depth.max() == 1500
    # A decision at every step but the last, where only one more title is longer and its end is forced.
    assert np.diff(trie.decisions[0]).max() == 1499


def test_description_counts_items_titles_and_decisions():
    trie = build([[1, 2, END], [1, 3, END], [1, 3, END], [4, END]])
    text = trie.describe()
    # root: {1…, 4…}; after 1: {2, 3}. Decisions: 2 for each of two titles and 1 for the third.
    assert "4 items, 3 distinct titles" in text
    assert "2 branching points, 1.67 decisions a title (most 2)" in text


def test_an_empty_catalog_is_refused():
    with pytest.raises(TemplateError, match="empty"):
        build([])


def test_an_item_without_tokens_is_refused_by_its_number():
    with pytest.raises(TemplateError, match="Item 1 "):
        build([[1, END], [], [2, END]])


@pytest.mark.parametrize("catalog", [[[1, 2], [5], [1]], [[1, 2, 3], [5], [1, 2]], [[1, 7, 7], [0], [1]]])
def test_a_title_that_begins_another_is_refused_naming_both(catalog):
    with pytest.raises(TemplateError, match=r"item 2 begin those of item 0"):
        build(catalog)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=8))
def test_only_ambiguous_catalogs_are_refused(catalog):
    ambiguous = any(a != b and b[: len(a)] == a for a in catalog for b in catalog)
    if ambiguous:
        with pytest.raises(TemplateError):
            build(catalog)
    else:
        assert build(catalog).n_items == len(catalog)
