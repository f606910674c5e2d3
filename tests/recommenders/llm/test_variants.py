"""GenList, Classify and Rank end to end on the tiny model: pairs, finetune, recommend, evaluate."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import PlainTrie
from transformers import AutoModelForCausalLM

from seqrec_prompt.artifacts import manifest, read_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.embeddings.clusters import CLUSTERS, Clusters
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError
from seqrec_prompt.evaluation.evaluate import EvaluateConfig, evaluate
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.pairs import PairsConfig, pairs
from seqrec_prompt.journal import Journal
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig, text
from seqrec_prompt.recommenders.fit import FitConfig, fit
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend

VARIANTS = ("GenList", "Classify", "Rank")
LENGTH, N_CLUSTERS, K = 6, 5, 8
TEMPLATES = {name: TemplateConfig(name=name, list_length=LENGTH, clusters=N_CLUSTERS) for name in VARIANTS}


@pytest.fixture(scope="module")
def data(dataset_dir):
    return Dataset.load(dataset_dir)


@pytest.fixture(scope="module")
def made(dataset_dir, data, tmp_path_factory):
    """What the variants need: embeddings, LLMSeqSim over them, its lists for the train and the test sessions."""
    root = tmp_path_factory.mktemp("needed")
    vectors = np.random.default_rng(5).normal(size=(len(data.catalog), 6)).astype(np.float32)
    EmbeddingTable(vectors, manifest("embed", {"data": "d"}, {"data": data.catalog.hash})).save(root / "embeddings")
    sim = fit(FitConfig(data=dataset_dir, recommender="llm-seq-sim", embeddings=root / "embeddings", out=root / "sim"))
    for part, k in (("train", 12), ("test", K)):
        out = root / f"{part}.parquet"
        recommend(RecommendConfig(data=dataset_dir, recommender=sim, part=part, k=k, exclude_seen=True, out=out))
    return root


def needed(made, name, part="train"):
    return {"embeddings": made / "embeddings"} if name == "Classify" else {"candidates": made / f"{part}.parquet"}


@pytest.fixture(scope="module")
def settings(tiny_model, dataset_dir):
    return {"data": dataset_dir, "model": str(tiny_model)}


@pytest.fixture(scope="module")
def adapter_of(settings, made, tmp_path_factory):
    """Name and objective → an adapter, trained once."""
    root, found = tmp_path_factory.mktemp("adapters"), {}

    def build(name, objective="catalog"):
        if (name, objective) not in found:
            found[name, objective] = finetune(
                FinetuneConfig(
                    **settings, **needed(made, name), template=TEMPLATES[name], objective=objective,
                    out=root / f"{name}-{objective}", context=2048, batch_size=2, max_steps=2, learning_rate=0.01,
                    dtype="float32", lora={"r": 2, "alpha": 4},
                )
            )  # fmt: skip
        return found[name, objective]

    return build


@pytest.fixture
def config_of(settings, made, tmp_path):
    """A recommendation without an adapter, or with one, which brings template and clusters."""

    def build(name, adapter=None, out="recs.parquet", **changes):
        own = {} if name == "GenList" or (adapter and name == "Classify") else needed(made, name, "test")
        own |= {"adapter": adapter} if adapter else {"template": TEMPLATES[name]}
        return RecommendConfig(**{**settings, **own, "out": tmp_path / out, "k": K, "dtype": "float32"} | changes)

    return build


def lists_of(path):
    """Session id → (item, score) in the file's order, and whether it is certified."""
    found = {}
    for row in pq.read_table(path).to_pylist():
        items = found.setdefault(row["session_id"], ([], [], row["certified"]))
        if row["item_id"] is not None:
            items[0].append(row["item_id"])
            items[1].append(row["score"])
    return found


@pytest.mark.parametrize("objective", ["catalog", "last_item"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_goes_from_training_to_a_table(
    settings, dataset_dir, data, made, adapter_of, config_of, tmp_path, name, objective
):
    adapter = adapter_of(name, objective)
    trained = read_manifest(adapter, "finetune")
    assert trained["facts"]["examples"] == 30
    assert set(needed(made, name)) <= set(trained["inputs"])
    assert all(np.isfinite(trained["facts"]["loss"]))
    config = config_of(name, adapter)
    recommend(config)
    found = lists_of(config.out)
    assert list(found) == data.split.test.prompts.ids.tolist()
    assert set(pq.read_table(config.out)["provenance"].to_pylist()) == {"constrained"}
    candidates = lists_of(made / "test.parquet")
    for session, (items, scores, certified) in found.items():
        assert scores == sorted(scores, reverse=True)
        assert certified
        assert len(set(items)) == len(items)
        assert set(items) <= set(data.catalog.ids)
        if name == "Rank":
            assert sorted(items) == sorted(candidates[session][0][:LENGTH])
        else:
            assert len(items) == K
    evaluate(EvaluateConfig(data=dataset_dir, recommendations=[config.out], out=tmp_path / "evaluation", cutoffs=[5]))
    assert "recs" in (tmp_path / "evaluation" / "table.md").read_text()


@pytest.mark.parametrize("name", VARIANTS)
def test_batches_and_stops_change_nothing(config_of, monkeypatch, name):
    one, many = config_of(name, batch_size=1), config_of(name, out="many.parquet", batch_size=12)
    recommend(one)
    monkeypatch.setattr("seqrec_prompt.recommenders.recommend.WINDOW", 5)
    append = Journal.append

    def stop_after_one(journal, *records):
        if journal.count == 1:
            raise KeyboardInterrupt
        append(journal, *records)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "append", stop_after_one)
        recommend(many)
    recommend(many)
    found = lists_of(many.out)
    for session, (items, scores, _) in lists_of(one.out).items():
        assert found[session][0] == items
        assert found[session][1] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_session_may_not_be_given_is_left_out(config_of, data, tmp_path, name):
    full = config_of(name)
    recommend(full)
    before = lists_of(full.out)
    session, (items, _, _) = next(iter(before.items()))
    (tmp_path / "deny.csv").write_text(f"session_id,item_id\n{session},{items[0]}\n")
    denied = config_of(name, out="denied.parquet", deny=tmp_path / "deny.csv", exclude_seen=True)
    recommend(denied)
    seen = {data.catalog.ids[item] for item in data.split.test.prompts[0]}
    after = lists_of(denied.out)[session][0]
    assert after
    assert not set(after) & (seen | {items[0]})


def plain_scores(model, tokenizer, prompt, answers):
    """(answers,) renormalised log p of each, by one plain forward an answer and a walk through nested dictionaries."""
    trie, scores = PlainTrie(answers), {}
    for answer in {tuple(answer) for answer in answers}:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 :]
        scores[answer] = trie.score(answer, torch.log_softmax(logits.double(), -1).numpy().__getitem__)
    return np.array([scores[tuple(answer)] for answer in answers])


@pytest.mark.parametrize("name", ["GenList", "Rank"])
def test_a_list_is_the_models_own_title_after_title(config_of, data, tiny_model, tokenizer, made, name):
    config = config_of(name, k=3)
    recommend(config)
    found, catalog = lists_of(config.out), data.catalog
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    titles = catalog.texts()
    lines = [tokenizer(f"\n{t}\n", split_special_tokens=True)["input_ids"][1:] for t in titles]
    for session in (1, 7):
        offered, left = [], set(range(len(catalog)))
        if name == "Rank":
            given = lists_of(made / "test.parquet")[data.split.test.prompts.ids[session]][0]
            left = {catalog.index[item] for item in given[:LENGTH]}
            offered = [titles[item] for item in sorted(left)]
        shown = [titles[item] for item in data.split.test.prompts[session]]
        prompt = tokenizer(text(TEMPLATES[name], shown, offered), split_special_tokens=True)["input_ids"]
        expected, total = [], 0.0
        for _ in range(3):
            scores = plain_scores(model, tokenizer, prompt, lines)
            best = min(left, key=lambda item: (-scores[item], -data.popularity[item], item))
            total += scores[best]
            expected.append((catalog.ids[best], total))
            left.remove(best)
            prompt = [*prompt, *lines[best]]
        items, scores, _ = found[data.split.test.prompts.ids[session]]
        assert items == [item for item, _ in expected]
        assert scores == pytest.approx([score for _, score in expected], abs=1e-3)


def test_classify_gives_items_their_clusters_probability_times_their_share(
    config_of, data, tiny_model, tokenizer, made
):
    config = config_of("Classify", k=len(data.catalog))
    recommend(config)
    found = lists_of(config.out)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    table = EmbeddingTable.load(made / "embeddings", data.catalog)
    clusters = Clusters.fit(table, N_CLUSTERS, data.catalog, data.popularity)
    prompter = compile_template(TEMPLATES["Classify"], data.catalog, tokenizer, clusters.names(data.catalog))
    for session in (0, 5):
        prompt = prompter.prompt(data.split.test.prompts[session]).tolist()
        of_cluster = plain_scores(model, tokenizer, prompt, [answer.tolist() for answer in prompter.answers])
        assert np.exp(of_cluster).sum() == pytest.approx(1)
        share = np.zeros(len(data.catalog))
        for cluster in range(N_CLUSTERS):
            members = clusters.of == cluster
            share[members] = (data.popularity[members] + 1) / (data.popularity[members] + 1).sum()
        expected = of_cluster[clusters.of] + np.log(share)
        items, scores, certified = found[data.split.test.prompts.ids[session]]
        assert certified
        assert scores == pytest.approx(sorted(expected, reverse=True), abs=1e-4)
        assert [expected[data.catalog.index[item]] for item in items] == pytest.approx(scores, abs=1e-4)
        assert np.exp(scores).sum() == pytest.approx(1, abs=1e-4)


def test_a_list_that_clusters_not_chosen_could_change_is_not_certified(config_of, data, monkeypatch):
    monkeypatch.setattr("seqrec_prompt.recommenders.llm.variants.CHOSEN", 1)
    few, all_of_them = config_of("Classify", k=1), config_of("Classify", out="all.parquet", k=len(data.catalog))
    recommend(few)
    recommend(all_of_them)
    whole, certified = lists_of(all_of_them.out), []
    for row in pq.read_table(few.out).to_pylist():
        best = whole[row["session_id"]]
        assert row["certified"] == (row["gap"] <= 0)
        if row["certified"]:
            assert row["score"] == pytest.approx(best[1][0], abs=1e-4)
        certified.append(row["certified"])
    assert not all(certified)


@pytest.mark.parametrize("name", VARIANTS)
def test_pairs_hold_prompt_and_answer_as_they_are_trained(settings, data, made, tokenizer, tmp_path, name):
    config = PairsConfig(**settings, **needed(made, name), template=TEMPLATES[name], out=tmp_path / "p.jsonl")
    found = [json.loads(line) for line in pairs(config).read_text(encoding="utf-8").splitlines()]
    assert len(found) == 30
    titles = [title.replace("<|", "< |") for title in data.catalog.texts()]
    for row, items in zip(found, data.split.train, strict=True):
        answer = row["completion"].splitlines()
        assert row["prompt"].startswith(TEMPLATES[name].instruction + "\n")
        assert titles[items[-2]] in row["prompt"]
        assert set(answer) <= set(titles)
        if name == "Classify":
            assert len(answer) == 1
        else:
            assert answer[0] == titles[items[-1]]
            assert 2 <= len(answer) <= LENGTH
            assert row["completion"].endswith("\n")
        if name == "Rank":
            assert sorted(answer) == sorted(row["prompt"].splitlines()[-1 - len(answer) : -1])


def test_test_prompts_need_no_lists_and_hold_no_target(settings, data, made, tmp_path):
    shared = {**settings, "part": "test", "out": tmp_path / "p.jsonl"}
    with pytest.raises((ConfigError, ValueError), match="need neither"):
        PairsConfig(**shared, template=TEMPLATES["GenList"], candidates=made / "test.parquet")
    assert len(pairs(PairsConfig(**shared, template=TEMPLATES["GenList"])).read_text().splitlines()) == 12
    with pytest.raises((ConfigError, ValueError), match="one list a session"):
        PairsConfig(**settings, out="x", targets="all", **needed(made, "Rank"), template=TEMPLATES["Rank"])


# --- what does not fit together


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Rank", {"candidates": None}, "Rank needs 'candidates'"),
        ("Classify", {"embeddings": None}, "Classify needs 'embeddings'"),
        ("GenList", {"candidates": "{made}/test.parquet"}, "GenList has no use for 'candidates'"),
        ("GenList", {"prior_weight": 0.5}, "'prior_weight' corrects scores of GenItem only"),
        ("Rank", {"candidates": "{made}/no.parquet"}, "no such file"),
        ("Rank", {"candidates": "{made}/train.parquet"}, r"holds lists of the train part"),
    ],
)
def test_what_a_variant_lacks_or_cannot_use_is_said(config_of, made, name, changes, message):
    changes = {key: value.format(made=made) if isinstance(value, str) else value for key, value in changes.items()}
    config = config_of(name, **changes)
    with pytest.raises((ConfigError, ArtifactError, DataError), match=message):
        recommend(config)
    assert not config.out.exists()


def test_an_adapter_brings_its_own_clusters(config_of, adapter_of, made):
    adapter = adapter_of("Classify")
    assert len(Clusters.load(adapter / CLUSTERS)) == N_CLUSTERS
    with pytest.raises(ConfigError, match="the adapter brings its clusters"):
        recommend(config_of("Classify", adapter, embeddings=made / "embeddings"))


def test_other_candidates_or_an_edited_template_are_another_run(settings, made, tmp_path, dataset_dir):
    lists = tmp_path / "lists.csv"
    lists.write_text("session_id,item_id,rank\n" + "".join(f"train-{i},item-4,1\n" for i in range(30)))
    template = tmp_path / "template.yaml"
    template.write_text("name: GenList\nquestion: What next?\n")
    shared = {**settings, "out": tmp_path / "p.jsonl", "candidates": lists}
    pairs(PairsConfig(**shared, template={"file": template}))
    pairs(PairsConfig(**shared, template={"file": template}))
    template.write_text("name: GenList\nquestion: And now?\n")
    with pytest.raises(ArtifactError, match=r"config\.template\.question: was 'What next\?', is 'And now\?'"):
        pairs(PairsConfig(**shared, template={"file": template}))
    template.write_text("name: GenList\nquestion: What next?\n")
    lists.write_text(lists.read_text().replace("item-4", "item-5"))
    with pytest.raises(ArtifactError, match=r"inputs\.candidates: was"):
        pairs(PairsConfig(**shared, template={"file": template}))


def test_lists_of_the_train_part_are_not_judged(dataset_dir, made, tmp_path):
    with pytest.raises(DataError, match="lists for train sessions"):
        evaluate(EvaluateConfig(data=dataset_dir, recommendations=[made / "train.parquet"], out=tmp_path / "e"))


def test_validation_while_training_is_for_genitem(settings, made, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=r"'validation\.steps' judges GenItem only"):
        FinetuneConfig(
            **settings, **needed(made, "Rank"), template=TEMPLATES["Rank"], out=tmp_path, validation={"steps": 20}
        )
