"""`recommend` end to end on the tiny model: the lists, what is resumed, repeated and refused."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import PlainTrie, build_model
from transformers import AutoModelForCausalLM

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError, ModelError, TemplateError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.recommenders import recommend as verb
from seqrec_prompt.recommenders.files import read_file_manifest
from seqrec_prompt.recommenders.llm import prompt
from seqrec_prompt.recommenders.llm.prompt import LLMSeqPrompt
from seqrec_prompt.recommenders.llm.settings import PASSING
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend


@pytest.fixture
def config_of(tiny_model, dataset_dir, tmp_path):
    def build(out="recs.parquet", **changes):
        settings = {"data": dataset_dir, "out": tmp_path / out, "model": str(tiny_model), "k": 5, "dtype": "float32"}
        return RecommendConfig(**settings | changes)

    return build


@pytest.fixture(scope="module")
def data(dataset_dir):
    return Dataset.load(dataset_dir)


@pytest.fixture(scope="module")
def adapter(tiny_model, dataset_dir, tmp_path_factory):
    """Trained hard enough to move every score, with a template of its own."""
    config = FinetuneConfig(
        data=dataset_dir,
        out=tmp_path_factory.mktemp("tuned") / "adapter",
        model=str(tiny_model),
        template=TemplateConfig(layout="ask", max_items=4),
        context=1024,
        max_steps=3,
        learning_rate=0.05,
        dtype="float32",
    )
    return finetune(config)


def lists_of(path):
    """Session id → rows in the file's order."""
    found = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["session_id"], []).append(row)
    return found


def items_of(path):
    return {name: [row["item_id"] for row in rows] for name, rows in lists_of(path).items()}


CLOSE = ("score", "gap", "outside")  # the same but for rounding


def assert_same_rows(one, other):
    one, other = lists_of(one), lists_of(other)
    assert list(one) == list(other)
    for name, rows in one.items():
        plain = [[{k: v for k, v in r.items() if k not in CLOSE} for r in rs] for rs in (rows, other[name])]
        assert plain[0] == plain[1]
        for key in CLOSE:
            assert [r[key] for r in rows] == pytest.approx([r[key] for r in other[name]], abs=1e-4)


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("k", [5, 100])
def test_every_session_gets_k_distinct_real_items(config_of, data, k, exclude_seen):
    config = config_of(k=k, exclude_seen=exclude_seen)
    assert recommend(config) == config.out
    found = lists_of(config.out)
    prompts = data.split.test.prompts
    assert list(found) == prompts.ids.tolist()
    for name, seen in zip(prompts.ids, prompts, strict=True):
        rows = found[name]
        wanted = {data.catalog.ids[i] for i in range(len(data.catalog)) if not (exclude_seen and i in seen)}
        items = [row["item_id"] for row in rows]
        assert len(items) == len(set(items)) == min(k, len(wanted))
        assert set(items) <= wanted
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert {row["provenance"] for row in rows} == {"constrained"}
        assert all(row["certified"] and row["gap"] <= 0 for row in rows)
    made = read_file_manifest(config.out)
    assert made["config"] | dict.fromkeys(PASSING) == config.resolved() | dict.fromkeys(PASSING)
    assert not made["config"].keys() & set(PASSING)
    assert made["facts"]["batch_size"] == config.batch_size
    assert (made["facts"]["sessions"], made["facts"]["part_sessions"]) == (12, 12)


@pytest.mark.parametrize("tuned", [False, True])
def test_the_lists_are_the_models_own_ranking(config_of, data, tiny_model, adapter, tokenizer, tuned):
    """Oracle: prompts as text, one plain forward a title, an unmerged adapter, a walk through nested dictionaries."""
    from peft import PeftModel

    config = config_of(k=12, adapter=adapter if tuned else None, exclude_seen=True)
    recommend(config)
    found = lists_of(config.out)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(model, str(adapter)).eval() if tuned else model
    titles = data.catalog.texts()
    plain = [tokenizer(f"\n{t}", split_special_tokens=True)["input_ids"][1:] for t in titles]
    newline = tokenizer("\n")["input_ids"]
    answers = [[*tokens, tokenizer.eos_token_id] if tuned else tokens + newline for tokens in plain]
    trie = PlainTrie(answers)
    popularity = Counter(data.split.train.items.tolist())
    prompts = data.split.test.prompts
    for i in (0, 4, 11):
        shown = prompts[i][-4:] if tuned else prompts[i]
        lines = "One shopping session, one item per line:\n" + "".join(f"{titles[j]}\n" for j in shown)
        lines += "The next item of this session:\n" if tuned else ""
        prompt = tokenizer(lines, split_special_tokens=True)["input_ids"]
        scores = {}
        for answer in {tuple(answer) for answer in answers}:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + list(answer)])).logits[0, len(prompt) - 1 :]
            logp = torch.log_softmax(logits.double(), -1).numpy()
            scores[answer] = trie.score(answer, logp.__getitem__)
        assert np.exp(list(scores.values())).sum() == pytest.approx(1)
        unseen = [j for j in range(len(titles)) if j not in prompts[i]]
        best = sorted(unseen, key=lambda j: (-scores[tuple(answers[j])], -popularity[j], j))[:12]
        rows = found[prompts.ids[i]]
        assert [row["item_id"] for row in rows] == [data.catalog.ids[j] for j in best]
        assert [row["score"] for row in rows] == pytest.approx([scores[tuple(answers[j])] for j in best], abs=2e-4)


def test_joint_scores_are_those_of_the_whole_title(config_of, data, tiny_model, tokenizer):
    config = config_of(scoring="joint", budget=10**6)
    recommend(config)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    lines = [tokenizer(f"\n{text}\n", split_special_tokens=True)["input_ids"][1:] for text in data.catalog.texts()]
    head = tokenizer(TemplateConfig().instruction + "\n")["input_ids"]
    for i, rows in enumerate(list(lists_of(config.out).values())[:3]):
        prompt = head + [token for item in data.split.test.prompts[i].tolist() for token in lines[item]]
        with torch.inference_mode():
            every = []
            for line in lines:
                logits = model(input_ids=torch.tensor([prompt + line])).logits[0, len(prompt) - 1 : -1].double()
                every.append(float(torch.log_softmax(logits, -1)[range(len(line)), line].sum()))
        assert [row["score"] for row in rows] == pytest.approx(sorted(every, reverse=True)[:5], abs=1e-4)
        assert [every[data.catalog.index[row["item_id"]]] for row in rows] == pytest.approx(
            [row["score"] for row in rows], abs=1e-4
        )


def test_the_prior_is_what_an_empty_session_is_given(config_of, data):
    """Scores with weight λ are log p(title | session) − λ·log p(title | empty session), over the whole catalog."""
    n = len(data.catalog)
    plain, corrected = config_of("plain.parquet", k=n), config_of("corrected.parquet", k=n, prior_weight=0.7)
    for config in (plain, corrected):
        recommend(config)
    engine = HuggingFaceEngine.load(plain.model, dtype="float32")
    compiled = compile_catalog(TemplateConfig(), data.catalog, engine.tokenizer, data.popularity)
    empty = LLMSeqPrompt(engine, compiled.prompter, compiled.trie, 2048).recommend(
        Sessions.build(["nobody"], [[]]), n, exclude_seen=False
    )
    prior = {data.catalog.ids[item]: score for item, score in zip(empty.items, empty.scores, strict=True)}
    before = lists_of(plain.out)
    for name, rows in lists_of(corrected.out).items():
        expected = {row["item_id"]: row["score"] - 0.7 * prior[row["item_id"]] for row in before[name]}
        assert {row["item_id"]: row["score"] for row in rows} == pytest.approx(expected, abs=1e-4)
        assert all(row["certified"] for row in rows)
    assert items_of(plain.out) != items_of(corrected.out)


def test_tables_of_allowed_and_denied_items_and_stock_are_kept_to(config_of, data, tmp_path):
    names, ids = data.split.test.prompts.ids.tolist(), data.catalog.ids
    (tmp_path / "allow.csv").write_text("session_id,item_id\n" + "".join(f"{names[0]},{ids[i]}\n" for i in (3, 4, 5)))
    (tmp_path / "deny.csv").write_text("session_id,item_id\n" + "".join(f"{names[1]},{i}\n" for i in ids[:20]))
    (tmp_path / "gone.csv").write_text(f"item_id\n{ids[4]}\n{ids[25]}\n")
    rules = {"allow": tmp_path / "allow.csv", "deny": tmp_path / "deny.csv", "out_of_stock": tmp_path / "gone.csv"}
    config = config_of(k=len(ids), **rules)
    recommend(config)
    found = items_of(config.out)
    assert set(found[names[0]]) == {ids[3], ids[5]}
    assert set(found[names[1]]) == set(ids[20:]) - {ids[25]}
    assert set(found[names[2]]) == set(ids) - {ids[4], ids[25]}
    (tmp_path / "gone.csv").write_text(f"item_id\n{ids[4]}\n")
    with pytest.raises(ArtifactError, match=r"inputs\.out_of_stock"):
        recommend(config)


def test_items_of_one_title_stand_in_the_order_of_their_popularity(config_of, data, tmp_path):
    from dataclasses import replace

    (tmp_path / "data").mkdir()
    train = Sessions.build(["a", "b", "c"], [[5, 4], [5, 4], [5, 3]])  # 3, 4 and 5 are the same title
    replace(data, split=replace(data.split, train=train)).save(tmp_path / "data")
    recommend(config := config_of(data=tmp_path / "data", k=30))
    for items in items_of(config.out).values():
        at = items.index("item-5")
        assert items[at : at + 3] == ["item-5", "item-4", "item-3"]


def test_a_budget_that_is_spent_is_told(config_of):
    recommend(config := config_of(k=20, budget=1))
    rows = [row for rows in lists_of(config.out).values() for row in rows]
    assert any(not row["certified"] for row in rows)
    assert all(row["certified"] == (row["gap"] <= 0) for row in rows)


def test_a_batch_of_one_and_of_eight_give_the_same_lists(config_of):
    recommend(one := config_of("one.parquet", batch_size=1))
    recommend(eight := config_of("eight.parquet", batch_size=8))
    assert_same_rows(one.out, eight.out)


def test_a_sample_of_sessions_is_drawn_with_the_seed(config_of, data):
    recommend(whole := config_of("whole.parquet"))
    names = {}
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        recommend(config := config_of(out, max_sessions=5, seed=seed))
        lists = items_of(config.out)
        names[out] = list(lists)
        assert lists == {name: items for name, items in items_of(whole.out).items() if name in lists}
        assert names[out] == [name for name in data.split.test.prompts.ids if name in lists]
    assert len(names["a"]) == 5
    assert names["a"] == names["b"] != names["c"]
    recommend(more := config_of("more.parquet", max_sessions=99))
    assert_same_rows(more.out, whole.out)


def stop_in_window(monkeypatch, number, calls):
    real = LLMSeqPrompt.batches

    def batches(self, sessions, *args, **kwargs):
        calls.append(len(sessions))
        lists = list(real(self, sessions, *args, **kwargs))
        if len(calls) == number:
            raise KeyboardInterrupt
        return iter(lists)

    monkeypatch.setattr(LLMSeqPrompt, "batches", batches)


def test_a_stopped_run_goes_on_and_ends_like_an_unbroken_one(config_of, tmp_path, monkeypatch, capsys):
    recommend(unbroken := config_of("unbroken.parquet"))
    config, calls = config_of("stopped.parquet"), []
    journal = tmp_path / "stopped.parquet.journal"
    monkeypatch.setattr(verb, "WINDOW", 5)
    with monkeypatch.context() as patch:
        stop_in_window(patch, 2, calls)
        with pytest.raises(KeyboardInterrupt):
            recommend(config)
    assert calls == [5, 5]
    config = config_of("stopped.parquet", batch_size=2)  # what to do where memory was short
    assert journal.exists()
    assert not config.out.exists()
    with pytest.raises(ArtifactError, match=r"config\.k: was 5, is 6"):
        recommend(config_of("stopped.parquet", k=6))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_in_window(patch, 99, calls)
        recommend(config)
    assert calls == [5, 5, 5, 2]  # the first window was not decoded again
    assert "going on: 5/12 sessions are done" in capsys.readouterr().out
    assert_same_rows(config.out, unbroken.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.parquet", "unbroken.parquet"]


@pytest.mark.parametrize("stopped", [False, True])
def test_the_figures_are_those_of_the_whole_run(config_of, data, monkeypatch, stopped):
    """Counted beside it, search by search; by a clock that goes on by 1 whenever it is read, a batch takes 1."""
    config, batches, clock = config_of(batch_size=2), [], iter(range(10**6))
    monkeypatch.setattr(verb, "WINDOW", 5)
    monkeypatch.setattr(verb, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    real = prompt.search

    def search(engine, trie, prompts, *args, **kwargs):
        if stopped and len(batches) == 4:
            raise KeyboardInterrupt
        found = real(engine, trie, prompts, *args, **kwargs)
        batches.append([sum(map(len, prompts)), found.counts.rounds.sum(), found.counts.tokens.sum()])
        return found

    monkeypatch.setattr(prompt, "search", search)
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            recommend(config)
        stopped = False
    recommend(config)
    facts, n = read_file_manifest(config.out)["facts"], len(data.split.test)
    assert len(batches) == 3 + 3 + 1  # windows of 5, 5 and 2
    assert facts["seconds_a_session"] == pytest.approx(len(batches) / n)
    told = [facts[name] for name in ("prompt_tokens", "rounds", "tree_tokens")]
    assert told == pytest.approx(np.sum(batches, axis=0) / n)


def test_a_finished_run_is_not_repeated_and_another_is_refused(config_of, capsys):
    recommend(config := config_of())
    before = config.out.stat().st_mtime_ns
    capsys.readouterr()
    assert recommend(config) == config.out
    assert capsys.readouterr().out == f"already recommended: {config.out}\n"
    with pytest.raises(ArtifactError, match=r"config\.exclude_seen: was False, is True\nChoose another --out, or"):
        recommend(config_of(exclude_seen=True))
    assert config.out.stat().st_mtime_ns == before
    recommend(config_of(k=3, overwrite=True))
    assert {len(items) for items in items_of(config.out).values()} == {3}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_somebody_else_is_left_alone(config_of, overwrite):
    """As a directory of somebody else is by `artifacts.is_done`: --overwrite replaces only what this package made."""
    config = config_of(overwrite=overwrite)
    config.out.write_text("my notes")
    with pytest.raises(ArtifactError, match=r"recs\.parquet is not a Parquet file"):
        recommend(config)
    assert config.out.read_text() == "my notes"
    pq.write_table(pa.table({"my": ["measurements"]}), config.out)
    with pytest.raises(ArtifactError, match=r"recs\.parquet"):
        recommend(config)
    assert pq.read_table(config.out).column_names == ["my"]


def test_an_adapter_brings_its_template_and_no_other_is_taken(config_of, adapter):
    with pytest.raises(ConfigError, match="was trained with another template"):
        recommend(config_of(adapter=adapter, template=TemplateConfig()))
    recommend(own := config_of("own.parquet", adapter=adapter))
    recommend(same := config_of("same.parquet", adapter=adapter, template=TemplateConfig(layout="ask", max_items=4)))
    assert_same_rows(own.out, same.out)
    assert "adapter" in read_file_manifest(own.out)["inputs"]


def test_an_adapter_of_another_base_model_is_refused(config_of, adapter, tokenizer, tmp_path):
    build_model(len(tokenizer), seed=1).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"was trained on another base model .*Give --model"):
        recommend(config_of(adapter=adapter, model=str(tmp_path / "other")))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_adapter_that_is_none_is_explained(config_of, tmp_path):
    with pytest.raises(ArtifactError, match=r"expected a directory made by 'finetune'"):
        recommend(config_of(adapter=tmp_path / "nowhere"))


def test_a_context_too_short_for_the_longest_title_is_said(config_of):
    with pytest.raises(TemplateError, match="A context of 100 tokens is too short"):
        recommend(config_of(context=100))
    with pytest.raises(TemplateError, match="A context of 100 tokens is too short"):
        recommend(config_of(context=100))  # the failed run left nothing that changes the answer


def test_a_run_that_fails_at_once_leaves_nothing(config_of, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        recommend(config_of(deny=tmp_path / "nowhere.csv"))
    assert sorted(tmp_path.iterdir()) == before


def test_train_sessions_are_continued_without_their_last_item(config_of, data, capsys):
    """The lists are those that the same prompts would get as test sessions."""
    path = recommend(config_of(part="train", max_sessions=5))
    assert "(5 of 30 train sessions" in capsys.readouterr().out
    train = {name: items[:-1] for name, items in zip(data.split.train.ids, data.split.train, strict=True)}
    found = items_of(path)
    assert len(found) == 5
    engine = HuggingFaceEngine.load(config_of().model, dtype="float32")
    compiled = compile_catalog(TemplateConfig(), data.catalog, engine.tokenizer, data.popularity)
    alone = LLMSeqPrompt(engine, compiled.prompter, compiled.trie, 2048)
    sessions = Sessions.build(list(found), [train[name].tolist() for name in found])
    lists = alone.recommend(sessions, 5, exclude_seen=False)
    assert [[data.catalog.ids[item] for item in items] for items in lists] == list(found.values())
