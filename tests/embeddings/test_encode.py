"""`encode` with an embedder that only counts words: order, blocks, what a stopped run keeps, cuts and refusals."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.encode import batches, encode, fit_texts
from seqrec_prompt.errors import ModelError, TemplateError
from seqrec_prompt.journal import Journal


class Words:
    """A token is a word; the vector holds the number of words, of characters, and the code of the first character."""

    dimension, context = 3, 100

    def __init__(self, broken="", stop_after=None):
        self.broken, self.left, self.batches = broken, stop_after, []

    def lengths(self, texts):
        return np.array([len(text.split()) for text in texts], np.int64)

    def embed(self, texts):
        if self.left is not None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
        self.batches.append(list(texts))
        rows = [[len(t.split()), len(t), ord(t[0])] for t in texts]
        return np.array(
            [[np.nan] * 3 if t == self.broken else row for t, row in zip(texts, rows, strict=True)],
            np.float32,
        )


TEXTS = [f"{'word ' * (i % 4)}t{i % 18}" for i in range(50)]
WANTED = np.array([[len(t.split()), len(t), ord(t[0])] for t in TEXTS], np.float32)
CATALOG = Catalog([f"id-{i}" for i in range(50)], TEXTS)


@pytest.fixture
def journal_of(tmp_path):
    return lambda: Journal(tmp_path / "journal", manifest("embed", {}, {}))


def run(embedder, journal, batch_tokens=20):
    try:
        return encode(embedder, TEXTS, embedder.lengths(TEXTS), CATALOG, journal, batch_tokens)[0]
    finally:
        journal.close()


def test_every_item_gets_the_vector_of_its_own_text(journal_of):
    embedder = Words()
    assert np.array_equal(run(embedder, journal_of()), WANTED)
    read = [text for batch in embedder.batches for text in batch]
    assert sorted(read) == sorted(set(TEXTS))  # each distinct text once
    assert all(len(b) * max(len(t.split()) for t in b) <= 20 or len(b) == 1 for b in embedder.batches)
    lengths = [len(text.split()) for text in read]
    assert lengths == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 400), max_size=60), st.integers(1, 3000))
def test_batches_hold_every_text_once_and_little_padding(lengths, most):
    lengths = np.array(sorted(lengths, reverse=True), np.int64)
    runs = list(batches(np.arange(len(lengths)), lengths, most))
    assert [item for run in runs for item in run.tolist()] == list(range(len(lengths)))
    for run, following in zip(runs, [*runs[1:], None], strict=False):
        padded, tokens = len(run) * lengths[run[0]], lengths[run].sum()
        assert len(run) == 1 or padded <= most
        assert len(run) == 1 or padded <= 256 or padded - tokens <= 0.05 * padded
        if following is not None:  # one more would have been too many
            padded, tokens = padded + lengths[run[0]], tokens + lengths[following[0]]
            assert padded > most or (padded > 256 and padded - tokens > 0.05 * padded)


def test_a_text_longer_than_a_batch_is_read_alone(journal_of):
    embedder = Words()
    assert np.array_equal(run(embedder, journal_of(), batch_tokens=1), WANTED)
    assert {len(batch) for batch in embedder.batches} == {1}


@pytest.mark.parametrize("torn", [False, True])
def test_a_stopped_run_goes_on_and_ends_like_an_unbroken_one(journal_of, tmp_path, monkeypatch, torn, capsys):
    stopped = Words(stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, journal_of(), batch_tokens=12)
    if torn:
        file = tmp_path / "journal"
        file.write_bytes(file.read_bytes()[:-5])
    journal = journal_of()
    kept = [i for record in journal.records() for i in record["items"]]
    assert kept
    goes_on = Words()
    assert np.array_equal(run(goes_on, journal), WANTED)
    assert not {TEXTS[i] for i in kept} & {text for batch in goes_on.batches for text in batch}
    assert f"going on: {len(kept)}/{len(set(TEXTS))} texts are done" in capsys.readouterr().out


def test_the_seconds_are_those_of_the_whole_run(journal_of, monkeypatch):
    """By a clock that goes on by 1 whenever it is read, a batch takes 1."""
    clock = iter(range(10**6))
    monkeypatch.setattr("seqrec_prompt.embeddings.encode.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(KeyboardInterrupt):
        run(Words(stop_after=3), journal_of())
    goes_on, journal = Words(), journal_of()
    _, seconds = encode(goes_on, TEXTS, goes_on.lengths(TEXTS), CATALOG, journal, 20)
    assert len(goes_on.batches) > 1
    assert seconds == 3 + len(goes_on.batches)


def test_no_digit_is_lost_on_the_way_through_the_journal(journal_of, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)

    class Random(Words):
        def embed(self, texts):
            super().embed(texts)
            return np.stack([rows[TEXTS.index(text)] for text in texts])

    with pytest.raises(KeyboardInterrupt):
        run(Random(stop_after=5), journal_of())
    assert np.array_equal(run(Random(), journal_of()), rows[[TEXTS.index(text) for text in TEXTS]])


def test_a_vector_that_is_not_finite_stops_and_names_the_item(journal_of, monkeypatch):
    broken = TEXTS[5]
    with pytest.raises(ModelError, match=r"vector of item 'id-5' \(text '.*t5'\) is not finite"):
        run(Words(broken=broken), journal_of())
    journal = journal_of()
    assert 5 not in [i for record in journal.records() for i in record["items"]]
    assert np.array_equal(run(Words(), journal), WANTED)


def test_the_item_is_cut_and_never_the_prompt_around_it():
    items = ["one two", "one two three four five six seven eight nine ten"]
    texts, lengths, cut = fit_texts(Words(), items, "say {item} in short", 8)
    assert texts[0] == "say one two in short"
    assert texts[1].startswith("say one two")
    assert texts[1].endswith(" in short")
    assert cut == 1
    assert lengths.tolist() == [len(text.split()) for text in texts]
    assert 6 <= lengths[1] <= 8
    assert fit_texts(Words(), items, None, 100)[0] == items


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(TemplateError, match="The prompt alone takes 4 tokens, but 3 are read"):
        fit_texts(Words(), ["x"], "a b {item} c d", 3)
