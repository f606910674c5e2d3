"""Blends and switches of two recommenders: lists worked by hand, a loop as the oracle, and what is kept of them."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.cli import main
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError
from seqrec_prompt.recommenders import fitted
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.fit import FitConfig, fit
from seqrec_prompt.recommenders.hybrids import Blend, Switch, merge
from seqrec_prompt.recommenders.settings import BlendConfig, SwitchConfig

SESSIONS = Sessions.build(["a", "b"], [[0], [1, 2]])


class Always:
    """Gives every session the same items, as far as they are asked for."""

    name = "Always"

    def __init__(self, items, scores=None, provenance="exact"):
        self.items, self.provenance, self.asked = items, provenance, []
        self.scores = scores or [float(len(items) - i) for i in range(len(items))]

    def recommend(self, sessions, k, *, exclude_seen):
        self.asked.append((sessions.ids.tolist(), k, exclude_seen))
        lists = [np.array(self.items[:k], np.int32) for _ in range(len(sessions))]
        scores = [np.array(self.scores[:k], np.float64) for _ in range(len(sessions))]
        return Recommendations.build(sessions.ids, lists, scores, self.provenance)


def test_reciprocal_ranks_worked_by_hand():
    one, other = Always([7, 3, 5]), Always([5, 8], provenance="embedding")
    found = Blend((one, other), 0.25, BlendConfig(weight=0.25)).recommend(SESSIONS, 3, exclude_seen=True)
    # 7: .75/61 · 3: .75/62 · 5: .75/63 + .25/61 · 8: .25/62
    assert [items.tolist() for items in found] == [[5, 7, 3]] * 2
    assert found.scores[:3] == pytest.approx([0.75 / 63 + 0.25 / 61, 0.75 / 61, 0.75 / 62])
    assert found.provenances.tolist() == ["exact"] * 6
    assert one.asked == other.asked == [(["a", "b"], 100, True)]
    whole = Blend((one, other), 0.25, BlendConfig()).recommend(SESSIONS, 9, exclude_seen=True)
    assert whole[0].tolist() == [5, 7, 3, 8]
    assert whole.provenances[:4].tolist() == ["exact", "exact", "exact", "embedding"]


def test_confidences_worked_by_hand():
    one, other = Always([7, 3, 5], [0.9, 0.6, 0.4]), Always([5, 8, 7], [30.0, 20.0, 10.0])
    found = Blend((one, other), 0.5, BlendConfig(merge="confidence")).recommend(SESSIONS, 4, exclude_seen=False)
    # 7: (1 + 0)/2 · 3: (.2/.5)/2 · 5: (0 + 1)/2 · 8: (10/20)/2; 5 and 7 are tied
    assert found[0].tolist() == [5, 7, 8, 3]
    assert found.scores[:4] == pytest.approx([0.5, 0.5, 0.25, 0.2])
    alike = Blend((Always([4, 2], [0.3, 0.3]), Always([9])), 0.5, BlendConfig(merge="confidence"))
    assert alike.recommend(SESSIONS, 3, exclude_seen=False)[1].tolist() == [2, 4, 9]


@pytest.mark.parametrize("weight", [0, 1])
def test_a_part_without_a_share_is_not_asked(weight):
    parts = Always([7, 3, 5]), Always([5, 8])
    found = Blend(parts, weight, BlendConfig()).recommend(SESSIONS, 3, exclude_seen=False)
    assert found[0].tolist() == parts[weight].items
    assert parts[1 - weight].asked == []


lists_of = st.lists(st.lists(st.integers(0, 9), max_size=6, unique=True), min_size=3, max_size=3)


@given(lists_of, lists_of, st.sampled_from([0, 0.25, 0.5, 1]), st.sampled_from(["rank", "confidence"]), st.data())
def test_merged_lists_are_those_of_a_loop(first, second, weight, how, data):
    def built(lists):
        scores = [
            sorted(data.draw(st.lists(st.integers(0, 4), min_size=len(one), max_size=len(one))), reverse=True)
            for one in lists
        ]
        arrays = [np.array(one, np.int32) for one in lists], [np.array(one, np.float64) for one in scores]
        return Recommendations.build(np.array(["a", "b", "c"], object), *arrays), scores

    parts, k = [built(first), built(second)], data.draw(st.integers(1, 12))
    found = merge([lists for lists, _ in parts], weight, how, k)
    for session in range(3):
        total = {}
        for share, (lists, scores) in zip((1 - weight, weight), parts, strict=True):
            if not share:
                continue
            own = scores[session]
            for rank, item in enumerate(lists[session].tolist(), 1):
                scaled = (own[rank - 1] - own[-1]) / (own[0] - own[-1]) if own[0] > own[-1] else 1
                total[item] = total.get(item, 0) + share * (1 / (60 + rank) if how == "rank" else scaled)
        wanted = sorted(total, key=lambda item: (-round(total[item], 12), item))[:k]
        scores = found.scores[found.offsets[session] : found.offsets[session + 1]]
        assert scores == pytest.approx([total[item] for item in wanted])
        for item, score in zip(found[session].tolist(), scores, strict=True):
            assert total[item] == pytest.approx(score)
        assert len(set(found[session].tolist())) == len(wanted)


def test_the_weight_with_the_best_ndcg_is_chosen():
    """The first part ranks the target of a third of the sessions first, the second that of the others."""
    prompts = Sessions.build(["a", "b", "c"], [[0], [0], [0]])
    validation = Holdout(prompts, np.array([5, 8, 8], np.int32))
    parts = Always([5, 1, 2, 3, 4, 6]), Always([8, 9, 10, 11, 12, 13])
    config = BlendConfig(weight=None)

    def ndcg(weight):
        items = merge([part.recommend(prompts, 100, exclude_seen=True) for part in parts], weight, "rank", 10)[0]
        ranks = [items.tolist().index(target) + 1 if target in items else math.inf for target in (5, 8, 8)]
        return sum(1 / math.log2(rank + 1) for rank in ranks) / 3

    chosen = Blend.fit(parts, config, validation).weight
    assert ndcg(chosen) == pytest.approx(max(ndcg(weight / 20) for weight in range(21)))
    assert chosen > 0.5
    for nothing in (None, validation.take(np.empty(0, np.int64))):
        with pytest.raises(DataError, match=r"no validation part to choose blend\.weight on"):
            Blend.fit(parts, config, nothing)


def test_popular_prompts_go_to_the_first_part():
    train = Sessions.build(["1", "2", "3", "4"], [[0, 0, 0, 0], [0, 1], [1, 2], [3]])
    # Items occur 5, 2, 1, 1 times; the sessions' means are 5, 3.5, 1.5, 1.
    parts = Always([10]), Always([20])
    prompts = Sessions.build(["popular", "none", "rare", "between"], [[0], [], [2, 3], [0, 1]])
    for quantile, threshold, wanted in (
        (0, 1, [10, 20, 10, 10]),
        (0.5, 3.5, [10, 20, 20, 10]),
        (0.7, 5, [10, 20, 20, 20]),
        (1, 5, [10, 20, 20, 20]),
    ):
        made = Switch.fit(parts, train, 4, SwitchConfig(quantile=quantile))
        assert made.threshold == threshold
        found = made.recommend(prompts, 3, exclude_seen=True)
        assert found.items.tolist() == wanted
        assert found.session_ids.tolist() == prompts.ids.tolist()
    with pytest.raises(DataError, match="no train session with an item"):
        Switch.fit(parts, Sessions.build(["1"], [[]]), 4, SwitchConfig())


def test_no_sessions_give_no_lists():
    parts, none = (Always([1]), Always([2])), Sessions.build([], [])
    assert len(Blend(parts, 0.5, BlendConfig()).recommend(none, 3, exclude_seen=True)) == 0
    assert len(Switch(parts, np.ones(3, np.int64), 1).recommend(none, 3, exclude_seen=True)) == 0


@pytest.fixture(scope="module")
def parts(dataset_dir, tmp_path_factory):
    where = tmp_path_factory.mktemp("parts")
    catalog = Dataset.load(dataset_dir).catalog
    vectors = np.random.default_rng(0).normal(size=(len(catalog), 6)).astype(np.float32)
    EmbeddingTable(vectors, manifest("embed", {"data": "x"}, {"data": catalog.hash})).save(where / "embeddings")
    one = fit(FitConfig(data=dataset_dir, recommender="sknn", out=where / "one"))
    config = {"recommender": "llm-seq-sim", "embeddings": where / "embeddings", "out": where / "other"}
    return one, fit(FitConfig(data=dataset_dir, **config))


@pytest.mark.parametrize("name", ["blend", "switch"])
def test_from_the_command_line_to_lists_without_the_parts_at_hand(dataset_dir, parts, tmp_path, capsys, name):
    data = Dataset.load(dataset_dir)
    moved = [str(shutil.copytree(part, tmp_path / part.name)) for part in parts]
    out, recs = tmp_path / "hybrid", tmp_path / "recs.parquet"
    command = ["fit", "--data", str(dataset_dir), "--recommender", name, f"--{name}.parts", *moved, "--out", str(out)]
    assert main(command) == 0
    assert main(command) == 0
    assert "already fitted" in capsys.readouterr().out
    for part in moved:
        shutil.rmtree(part)
    flags = ["--data", str(dataset_dir), "--recommender", str(out), "--k", "5", "--exclude-seen", "--out", str(recs)]
    assert main(["recommend", *flags]) == 0
    both = tuple(fitted.load(part, data)[0] for part in parts)
    right = (
        Blend(both, 0.5, BlendConfig())
        if name == "blend"
        else Switch.fit(both, data.split.train, len(data.catalog), SwitchConfig())
    ).recommend(data.split.test.prompts, 5, exclude_seen=True)
    table = pq.read_table(recs)
    assert table["item_id"].to_pylist() == [data.catalog.ids[item] for item in right.items]
    assert table["score"].to_pylist() == pytest.approx(right.scores.tolist())
    assert table["provenance"].to_pylist() == right.provenances.tolist()


def test_other_parts_in_the_same_place_are_noticed_and_moved_ones_are_not(dataset_dir, parts, tmp_path):
    one, other = (shutil.copytree(part, tmp_path / part.name) for part in parts)
    settings = {"data": dataset_dir, "recommender": "blend", "out": tmp_path / "hybrid"}
    made = fit(FitConfig(**settings, blend=BlendConfig(parts=(one, other))))
    data = Dataset.load(dataset_dir)
    identity = fitted.load(made, data)[1]
    fit(FitConfig(**settings, blend=BlendConfig(parts=parts)))
    assert fitted.load(made, data)[1] == identity
    with pytest.raises(ArtifactError, match=r"inputs\.blend\.parts: was"):
        fit(FitConfig(**settings, blend=BlendConfig(parts=(other, one))))
    with pytest.raises(ArtifactError, match=r"config\.blend\.depth: was 100, is 7"):
        fit(FitConfig(**settings, blend=BlendConfig(parts=parts, depth=7)))
    swapped = fit(FitConfig(**settings | {"out": tmp_path / "swapped"}, blend=BlendConfig(parts=(other, one))))
    assert fitted.load(swapped, data)[1] != identity
    (made / "parts" / "1" / fitted.ARRAYS).unlink()
    with pytest.raises(ArtifactError, match=r"parts/1/arrays\.safetensors is missing"):
        fitted.load(made, data)


def test_hybrids_of_hybrids(dataset_dir, parts, tmp_path):
    config = {"data": dataset_dir, "recommender": "blend"}
    inner = fit(FitConfig(**config, out=tmp_path / "inner", blend=BlendConfig(parts=parts, merge="confidence")))
    outer = fit(FitConfig(**config, out=tmp_path / "outer", blend=BlendConfig(parts=(inner, parts[0]), weight=0.1)))
    data = Dataset.load(dataset_dir)
    found, _ = fitted.load(outer, data)
    assert found.recommend(data.split.test.prompts, 4, exclude_seen=True).items.size == 4 * len(data.split.test)


def test_the_weight_is_not_chosen_on_targets_that_a_part_has_learned(dataset_dir, tmp_path):
    data = Dataset.load(dataset_dir)
    validation = Holdout(Sessions.build(["v", "w"], [[0, 1], [3, 4]]), np.array([2, 5], np.int32))
    where = shutil.copytree(dataset_dir, tmp_path / "data")
    Dataset(data.catalog, Split(data.split.train, data.split.test, validation), data.manifest).save(where)

    def made(name, sessions):
        return fit(FitConfig(data=where, recommender=name, sessions=sessions, out=tmp_path / f"{name}-{sessions}"))

    one, other, knowing = made("sknn", "train"), made("most-popular", "train"), made("most-popular", "before_test")
    config = {"data": where, "recommender": "blend"}
    chosen = fit(FitConfig(**config, out=tmp_path / "chosen", blend=BlendConfig(parts=(one, other), weight=None)))
    assert 0 <= fitted.load(chosen, Dataset.load(where))[0].weight <= 1
    inner = fit(FitConfig(**config, out=tmp_path / "inner", blend=BlendConfig(parts=(one, knowing))))
    for part in (knowing, inner):
        with pytest.raises(ConfigError, match=r"was fitted with --sessions before_test"):
            fit(FitConfig(**config, out=tmp_path / "no", blend=BlendConfig(parts=(one, part), weight=None)))
    assert not (tmp_path / "no").exists()


def test_what_makes_no_hybrid_is_refused(dataset_dir, parts, tmp_path, capsys):
    command = ["fit", "--data", str(dataset_dir), "--recommender", "blend", "--out", str(tmp_path / "hybrid")]
    assert main(command) == 2
    assert "'blend' needs two --blend.parts, made by 'fit'; 0 given" in capsys.readouterr().err
    assert main([*command, "--blend.parts", str(parts[0])]) == 2
    assert "1 given" in capsys.readouterr().err
    assert main([*command, "--blend.parts", str(parts[0]), str(dataset_dir)]) == 2
    assert "was not made by 'seqrec-prompt fit'" in capsys.readouterr().err
    assert main([*command, "--blend.parts", *map(str, parts), "--switch.quantile", "0.3"]) == 2
    assert "'switch' holds no settings of 'blend'" in capsys.readouterr().err
    assert main([*command, "--blend.parts", *map(str, parts), "--blend.weight", "1.5"]) == 2
    assert "'blend.weight' = '1.5'" in capsys.readouterr().err
    inside = [*command[:-1], str(parts[0].parent)]
    assert main([*inside, "--blend.parts", *map(str, parts)]) == 2
    assert "lies inside 'out'" in capsys.readouterr().err
    other = shutil.copytree(dataset_dir, tmp_path / "other")
    made = json.loads((other / "manifest.json").read_text())
    made["facts"]["hash"] = "changed"
    (other / "manifest.json").write_text(json.dumps(made))
    assert main([*command[:2], str(other), *command[3:], "--blend.parts", *map(str, parts)]) == 2
    assert "was fitted on other data" in capsys.readouterr().err
