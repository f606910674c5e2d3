"""`fit` and `recommend --recommender`: what is kept, read back, refused, and the whole way on the command line."""

import json
import shutil
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.cli import main
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.embeddings.reduce import ReduceConfig
from seqrec_prompt.embeddings.table import EmbeddingTable, load_tables
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.recommenders import fitted
from seqrec_prompt.recommenders.fit import FROM_EMBEDDINGS, HYBRIDS, FitConfig, fit
from seqrec_prompt.recommenders.nearest.embedding_neighbors import EmbeddingNeighborsConfig, EmbeddingSKNN
from seqrec_prompt.recommenders.nearest.neighbors import VSKNN
from seqrec_prompt.recommenders.nearest.similarity import LLMSeqSim, SimilarityConfig
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend
from seqrec_prompt.recommenders.settings import SECTIONS, NeighborsConfig, TransitionsConfig

SEQUENTIAL = ["sasrec", "bert4rec", "gru4rec"]  # which are trained: tests/recommenders/sequential
NAMES = [name for name in fitted.RECOMMENDERS if name not in (*FROM_EMBEDDINGS, *SEQUENTIAL, *HYBRIDS)]


@pytest.fixture(scope="module")
def data(dataset_dir):
    return Dataset.load(dataset_dir)


def rows_of(path):
    found = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["session_id"], []).append(row)
    return found


def test_every_recommender_can_be_asked_for():
    assert list(get_args(FitConfig.model_fields["recommender"].annotation)) == list(fitted.RECOMMENDERS)
    assert set(SECTIONS) <= set(fitted.RECOMMENDERS)
    assert set(SECTIONS.values()) == set(fitted.SETTINGS)
    assert all(FitConfig.model_fields[section].annotation is cls for section, cls in fitted.SETTINGS.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_what_is_read_back_recommends_the_same(data, dataset_dir, tmp_path, name, exclude_seen):
    section = SECTIONS.get(name)
    config = {
        "neighbors": NeighborsConfig(k_neighbors=7, sample=9, sampling="random", idf=0.5, seed=3),
        "transitions": TransitionsConfig(max_items=3, decay="harmonic", backwards=0.5),
    }.get(section)
    out = tmp_path / "fitted"
    fit(FitConfig(data=dataset_dir, recommender=name, out=out, **({section: config} if section else {})))
    before = fitted.RECOMMENDERS[name].fit(data.split.train, len(data.catalog), config)
    after, _ = fitted.load(out, data)
    prompts = data.split.test.prompts
    one, other = (r.recommend(prompts, 6, exclude_seen=exclude_seen) for r in (before, after))
    assert type(after) is type(before)
    assert len(one.items) > 12
    for part in ("offsets", "items", "scores"):
        assert np.array_equal(getattr(one, part), getattr(other, part))
        assert getattr(one, part).dtype == getattr(other, part).dtype


@pytest.mark.parametrize("name", NAMES)
def test_from_the_command_line_to_a_table(data, dataset_dir, tmp_path, capsys, name):
    where, out = tmp_path / "fitted", tmp_path / "recs.parquet"
    assert main(["fit", "--data", str(dataset_dir), "--recommender", name, "--out", str(where)]) == 0
    flags = ["--data", str(dataset_dir), "--recommender", str(where), "--k", "4", "--exclude-seen", "--out", str(out)]
    assert main(["recommend", *flags]) == 0
    assert (
        main(["evaluate", "--data", str(dataset_dir), "--recommendations", str(out), "--out", str(tmp_path / "e")]) == 0
    )
    assert "| recs" in capsys.readouterr().out
    found = rows_of(out)
    assert list(found) == data.split.test.prompts.ids.tolist()
    for session_id, seen in zip(data.split.test.prompts.ids, data.split.test.prompts, strict=True):
        rows = [row for row in found[session_id] if row["rank"]]
        items = {row["item_id"] for row in rows}
        assert len(items) == len(rows) <= 4
        assert not items & {data.catalog.ids[item] for item in seen}
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert {row["provenance"] for row in found[session_id]} == {"exact"}
    assert json.loads((where / "manifest.json").read_text())["config"]["recommender"] == name


def test_max_sessions_are_drawn_as_for_an_llm(data, dataset_dir, tmp_path):
    where = fit(FitConfig(data=dataset_dir, recommender="v-sknn", out=tmp_path / "fitted"))

    def lists(seed):
        out = tmp_path / f"{seed}.parquet"
        return rows_of(
            recommend(RecommendConfig(data=dataset_dir, recommender=where, out=out, max_sessions=5, seed=seed))
        )

    drawn = np.sort(np.random.default_rng(1).choice(len(data.split.test), 5, replace=False))
    assert list(lists(1)) == data.split.test.prompts.ids[drawn].tolist()
    assert list(lists(1)) != list(lists(0))


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(dataset_dir, tmp_path, capsys):
    settings = {"data": dataset_dir, "recommender": "sknn", "out": tmp_path / "fitted"}
    fit(FitConfig(**settings))
    fit(FitConfig(**settings))
    assert capsys.readouterr().out.splitlines()[-1] == f"already fitted: {tmp_path / 'fitted'}"
    other = FitConfig(**settings, neighbors=NeighborsConfig(k_neighbors=3))
    with pytest.raises(ArtifactError, match=r"config.neighbors.k_neighbors: was 100, is 3"):
        fit(other)
    lists = RecommendConfig(data=dataset_dir, recommender=tmp_path / "fitted", out=tmp_path / "recs.parquet")
    recommend(lists)
    recommend(lists)
    assert capsys.readouterr().out.splitlines()[-1] == f"already recommended: {lists.out}"
    fit(other.model_copy(update={"overwrite": True}))
    with pytest.raises(ArtifactError, match=r"inputs\.recommender"):
        recommend(lists)


def test_a_directory_that_is_none_or_damaged_is_named(data, dataset_dir, tmp_path):
    def load(where):
        return recommend(RecommendConfig(data=dataset_dir, recommender=where, out=tmp_path / "recs.parquet"))

    with pytest.raises(ArtifactError, match="expected a directory made by 'fit'"):
        load(tmp_path / "nowhere")
    where = fit(FitConfig(data=dataset_dir, recommender="most-popular", out=tmp_path / "fitted"))
    other = shutil.copytree(dataset_dir, tmp_path / "other")
    made = json.loads((other / "manifest.json").read_text())
    made["facts"]["hash"] = "changed"
    (other / "manifest.json").write_text(json.dumps(made))
    with pytest.raises(ArtifactError, match="was fitted on other data"):
        recommend(RecommendConfig(data=other, recommender=where, out=tmp_path / "recs.parquet"))
    (where / fitted.ARRAYS).write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"arrays.safetensors is missing or damaged"):
        load(where)
    assert not (tmp_path / "recs.parquet").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fit", "--recommender", "v-sknm"], "'recommender' = 'v-sknm'"),
        (["fit", "--recommender", "most-popular", "--neighbors.idf", "1"], "'neighbors' holds no settings of"),
        (["fit", "--recommender", "sknn", "--neighbors.decay", "log"], "'neighbors.decay' is used only by v-sknn"),
        (["fit", "--recommender", "sknn", "--neighbors.sample", "0"], "'neighbors.sample' = '0'"),
        (["recommend", "--recommender", "x", "--model", "smollm2", "--deny", "y"], "no use for 'deny', 'model'"),
    ],
)
def test_settings_without_use_are_refused(capsys, argv, message):
    assert main([*argv, "--data", "d", "--out", "o"]) == 2
    assert message in capsys.readouterr().err


def test_before_test_has_every_session_once_and_whole():
    def timed(ids, lists):
        built = Sessions.build(ids, lists)
        return Sessions(built.ids, built.offsets, built.items, np.arange(len(built.items), dtype=float))

    train = timed(["a", "b", "c"], [[0, 1], [2], [3, 4]])
    validation = Holdout(timed(["c", "a", "d"], [[3, 4], [0, 1], []]), np.array([5, 6, 7], np.int32), np.arange(3.0))
    test = Holdout(timed(["a"], [[0, 1, 6]]), np.array([8], np.int32))
    known = Split(train, test, validation).before_test()
    assert dict(zip(known.ids.tolist(), [s.tolist() for s in known], strict=True)) == {
        "b": [2],
        "c": [3, 4, 5],
        "a": [0, 1, 6],
        "d": [7],
    }
    assert known.times.tolist() == [2, 0, 1, 0, 2, 3, 1, 2]
    assert Split(train, test).before_test() is train


def test_fit_learns_from_validation_only_when_asked(data, dataset_dir, tmp_path):
    new = len(data.catalog) - 1
    validation = Holdout(Sessions.build(["v"], [[0]]), np.array([new], np.int32))
    split = Split(data.split.train, data.split.test, validation)
    where = shutil.copytree(dataset_dir, tmp_path / "data")
    Dataset(data.catalog, split, data.manifest).save(where)
    counts = {}
    for part in ("train", "before_test"):
        fit(FitConfig(data=where, recommender="most-popular", sessions=part, out=tmp_path / part))
        counts[part] = fitted.load(tmp_path / part, Dataset.load(where))[0].counts
    gained = counts["before_test"] - counts["train"]
    assert np.flatnonzero(gained).tolist() == [0, new]


@pytest.fixture
def embeddings(data, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(len(data.catalog), 6)).astype(np.float32)
    made = manifest("embed", {"data": "x"}, {"data": data.catalog.hash})
    EmbeddingTable(vectors, made).save(tmp_path / "embeddings")
    return tmp_path / "embeddings"


def test_llm_seq_sim_is_kept_and_recommends_as_it_did(data, dataset_dir, embeddings, tmp_path, capsys):
    out, recs = tmp_path / "sim", tmp_path / "sim.parquet"
    words = ["--recommender", "llm-seq-sim", "--embeddings", str(embeddings), "--similarity.reduce.method", "pca"]
    command = ["fit", "--data", str(dataset_dir), *words, "--similarity.reduce.dimensions", "3", "--out", str(out)]
    assert main(command) == 0
    assert main(command) == 0
    assert "already fitted" in capsys.readouterr().out
    assert main(["recommend", "--data", str(dataset_dir), "--recommender", str(out), "--out", str(recs)]) == 0
    config = SimilarityConfig(reduce=ReduceConfig(method="pca", dimensions=3))
    made = LLMSeqSim.fit(EmbeddingTable.load(embeddings, data.catalog), data.catalog, config)
    right = made.recommend(data.split.test.prompts, 20, exclude_seen=False)
    found = rows_of(recs)
    ids = [data.catalog.ids[item] for item in right.items]
    assert [row["item_id"] for name in right.session_ids for row in found[name]] == ids
    assert {row["provenance"] for rows in found.values() for row in rows} == {"embedding"}


def test_a_reduction_is_reused_for_another_catalog(data, dataset_dir, embeddings, tmp_path, capsys):
    """The second data have the first's items and more; the items they share keep their vectors."""
    words = ["--recommender", "llm-seq-sim", "--embeddings", str(embeddings), "--similarity.reduce.method"]
    first = ["fit", "--data", str(dataset_dir), *words, "whiten_pca", "--similarity.reduce.dimensions", "3"]
    assert main([*first, "--out", str(tmp_path / "one")]) == 0
    grown = Catalog([*data.catalog.ids, "new"], [*data.catalog.titles, "new"])
    vectors = EmbeddingTable.load(embeddings, data.catalog).vectors
    more = np.concatenate([vectors, [[1, 0, 0, 2, 0, 3]]]).astype(np.float32)
    other = Dataset(grown, data.split, data.manifest)
    other.save(tmp_path / "grown")
    EmbeddingTable(more, manifest("embed", {"data": "x"}, {"data": grown.hash})).save(tmp_path / "more")
    words[3] = str(tmp_path / "more")
    again = ["fit", "--data", str(tmp_path / "grown"), *words, "fitted", "--similarity.reduce.source"]
    again = [*again, str(tmp_path / "one"), "--out", str(tmp_path / "two")]
    assert main(again) == 0
    one, two = (load_file(tmp_path / name / fitted.ARRAYS) for name in ("one", "two"))
    assert two["vectors"][:-1] == pytest.approx(one["vectors"], abs=1e-6)
    assert np.array_equal(two["reduction.components"], one["reduction.components"])
    moved = [shutil.move(tmp_path / "one", tmp_path / "moved") if word == str(tmp_path / "one") else word
             for word in again]  # fmt: skip
    assert main([str(word) for word in moved]) == 0
    assert "already fitted" in capsys.readouterr().out


def test_embedding_sknn_is_kept_and_recommends_as_it_did(data, dataset_dir, embeddings, tmp_path):
    out, recs = tmp_path / "sknn", tmp_path / "sknn.parquet"
    words = ["--recommender", "embedding-sknn", "--embeddings", str(embeddings), "--embedding-neighbors.k-neighbors"]
    assert main(["fit", "--data", str(dataset_dir), *words, "5", "--out", str(out)]) == 0
    assert main(["recommend", "--data", str(dataset_dir), "--recommender", str(out), "--out", str(recs)]) == 0
    table = EmbeddingTable.load(embeddings, data.catalog)
    made = EmbeddingSKNN.fit(table, data.catalog, data.split.train, EmbeddingNeighborsConfig(k_neighbors=5))
    right = made.recommend(data.split.test.prompts, 20, exclude_seen=False)
    found = rows_of(recs)
    ids = [data.catalog.ids[item] for item in right.items]
    assert [row["item_id"] for name in right.session_ids for row in found[name]] == ids
    assert len(ids) > 20


def test_one_embedding_need_not_stand_in_a_list_and_an_empty_list_is_none(embeddings):
    config = {"data": "d", "out": "o", "recommender": "llm-seq-sim"}
    assert FitConfig(**config, embeddings=str(embeddings)).embeddings == (embeddings,)
    config["recommender"] = "sknn"
    # As manifests have it that were written when there could be one at most.
    assert FitConfig(**config, embeddings=[]).resolved()["embeddings"] is None
    assert FitConfig(**config).resolved()["embeddings"] is None


def test_other_embeddings_in_the_same_place_are_noticed(dataset_dir, embeddings, tmp_path):
    config = {"data": dataset_dir, "recommender": "llm-seq-sim", "embeddings": embeddings, "out": tmp_path / "sim"}
    fit(FitConfig(**config))
    vectors = load_file(embeddings / "embeddings.safetensors")["vectors"]
    save_file({"vectors": vectors + 1}, embeddings / "embeddings.safetensors")
    with pytest.raises(ArtifactError, match=r"inputs\.embeddings: was"):
        fit(FitConfig(**config))


@pytest.mark.parametrize("recommender", ["llm-seq-sim", "embedding-sknn", "sasrec"])
def test_two_embeddings_are_read_side_by_side(data, dataset_dir, embeddings, tmp_path, recommender):
    vectors = np.random.default_rng(5).normal(size=(len(data.catalog), 4)).astype(np.float32)
    EmbeddingTable(vectors, EmbeddingTable.load(embeddings, data.catalog).manifest).save(tmp_path / "second")
    joined, _ = load_tables([embeddings, tmp_path / "second"], data.catalog)
    joined.save(tmp_path / "joined")
    small = ["--sequential.dim", "4", "--sequential.epochs", "1"] if recommender == "sasrec" else []

    def made(name, *places):
        words = ["--data", str(dataset_dir), "--recommender", recommender, *small, "--embeddings", *map(str, places)]
        assert main(["fit", *words, "--out", str(tmp_path / name)]) == 0
        return load_file(tmp_path / name / fitted.ARRAYS)

    two, one = made("two", embeddings, tmp_path / "second"), made("one", tmp_path / "joined")
    assert set(two) == set(one)
    assert all(np.array_equal(two[name], one[name]) for name in one)
    first = made("first", embeddings)
    assert any(first[name].shape != two[name].shape or not np.array_equal(first[name], two[name]) for name in two)
    config = {"data": dataset_dir, "recommender": recommender, "out": tmp_path / "two"}
    settings = {"sequential": {"dim": 4, "epochs": 1}} if small else {}
    with pytest.raises(ArtifactError, match=r"inputs\.embeddings: was"):
        fit(FitConfig(**config, **settings, embeddings=(tmp_path / "second", embeddings)))
    inside = tmp_path / "two" / "table"
    joined.save(inside)
    with pytest.raises(ArtifactError, match=r"'embeddings 2' = .*table lies inside 'out'"):
        fit(FitConfig(**config, **settings, embeddings=[str(embeddings), str(inside)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recommender": "llm-seq-sim"}, "'llm-seq-sim' needs --embeddings"),
        ({"recommender": "embedding-sknn"}, "'embedding-sknn' needs --embeddings"),
        ({"recommender": "sknn", "embeddings": "e"}, "'sknn' knows no 'embeddings'"),
        ({"recommender": "sknn", "similarity": {"weighting": "log"}}, "'similarity' holds no settings of 'sknn'"),
    ],
)
def test_settings_of_another_recommender_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(data="d", out="o", **changes)


def test_lists_that_took_long_are_kept_and_gone_on_from(data, dataset_dir, tmp_path, capsys, monkeypatch):
    """Stopped after two blocks, in a session's own order: what is kept is not made again, and all is as unbroken."""
    where = fit(FitConfig(data=dataset_dir, recommender="v-sknn", out=tmp_path / "fitted"))
    whole, out = (RecommendConfig(data=dataset_dir, recommender=where, out=tmp_path / name) for name in ("a", "b"))
    recommend(whole)
    monkeypatch.setattr("seqrec_prompt.recommenders.recommend.BLOCK", 3)
    monkeypatch.setattr("seqrec_prompt.recommenders.recommend.EVERY", 0.0)
    answered, real = [], VSKNN.recommend

    def until_third(self, sessions, k, *, exclude_seen):
        answered.append(len(sessions))
        if len(answered) == 3:
            raise KeyboardInterrupt
        return real(self, sessions, k, exclude_seen=exclude_seen)

    monkeypatch.setattr(VSKNN, "recommend", until_third)
    with pytest.raises(KeyboardInterrupt):
        recommend(out)
    assert not out.out.exists()
    capsys.readouterr()
    recommend(out)
    n = len(data.split.test)
    assert capsys.readouterr().out.startswith(f"going on: 6/{n} sessions are done\n")
    assert sum(answered) - 3 == n  # the third block was begun twice
    assert pq.read_table(out.out).equals(pq.read_table(whole.out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "fitted"]
