"""Companions below the titles of a prompt: what is written, trained, decoded and refused."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import PlainTrie, as_lists, oracle_scores

from seqrec_prompt.artifacts import read_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Sessions, Split
from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.finetuning.examples import Collator, tokens_of, windows
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.pairs import PairsConfig, pairs
from seqrec_prompt.finetuning.setup import build_trainer
from seqrec_prompt.finetuning.validate import ValidateConfig, validate
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.recommenders import files
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend

TWO = TemplateConfig(companions=2)
ROWS = [[16, 10, 3, 6, 4], [5, 8], [19, 21, 22, 4, 3, 0, 1, 2]]


@pytest.fixture
def data(dataset_dir):
    """The tiny data set, with few train sessions.

    Beside 16: 20 with a share of 2/6 after it and 1 before it, 19 with 3/6 after it; 3, too, but once. Beside 17: 5
    and 19, always, and beside 19: 16 and 17.
    """
    given = Dataset.load(dataset_dir)
    train = [[16, 20], [16, 19], [16, 19, 17, 5], [16, 20, 16, 19, 17, 5], [16, 3]]
    return Dataset(given.catalog, Split(Sessions.build([*"abcde"], train), given.split.test), given.manifest)


def below(prompter, item):
    """What stands below the title of an item."""
    return prompter.lines[item].tolist()[len(prompter.answers[item]) :]


@pytest.mark.parametrize("layout", ["continue", "ask"])
def test_they_stand_below_the_title_in_the_tokens_of_titles(data, tokenizer, layout):
    template = TemplateConfig(layout=layout, companions=2)
    prompter = compile_template(template, data.catalog, tokenizer, companions=data.companions(2))
    plain = compile_template(TemplateConfig(layout=layout), data.catalog, tokenizer)
    titles = data.catalog.texts()
    assert as_lists(prompter.answers) == as_lists(plain.answers)
    for item in range(len(titles)):
        beside = {16: [20, 19], 17: [5, 19], 19: [16, 17], 20: [16], 5: [17]}.get(item)
        rest = f"->{';'.join(titles[other] for other in beside)}\n" if beside else ""
        assert tokenizer.decode(prompter.lines[item]) == f"{titles[item]}\n{rest}"
        assert prompter.lines[item].tolist()[: len(plain.lines[item])] == plain.lines[item].tolist()
    written = prompter.lines[16].tolist()
    for item in (19, 20):  # just the tokens that the model is to write
        title = plain.lines[item].tolist()[:-1]
        assert any(written[at : at + len(title)] == title for at in range(len(written)))
    prompt = prompter.prompt(np.array([16, 3]))
    question = "The next item of this session:\n" if layout == "ask" else ""
    assert tokenizer.decode(prompt) == (
        f"One shopping session, one item per line:\n{titles[16]}\n->{titles[20]};{titles[19]}\n{titles[3]}\n{question}"
    )


@pytest.mark.parametrize("objective", ["catalog", "all_items", "last_item"])
def test_only_titles_are_learned_each_after_what_stands_below_the_one_before(data, tokenizer, objective):
    prompter = compile_template(TWO, data.catalog, tokenizer, companions=data.companions(2))
    trie, plain = compile_trie(prompter.answers), PlainTrie(prompter.answers)
    rows = [[17, 16, 17, 5], [16, 20]]
    batch = Collator(prompter, objective, trie, 0)([{"items": row} for row in rows])
    decided = []
    for number, row in enumerate(rows):
        tokens, labels = prompter.head.tolist(), [-100] * len(prompter.head)
        for place, item in enumerate(row):
            title, asked = prompter.answers[item].tolist(), place == len(row) - 1
            if place and (asked or objective != "last_item"):
                decided += [(number, len(tokens) + at - 1) for at, _ in plain.decisions(title)]
                labels += title[:1] + [-100] * (len(title) - 1) if objective == "catalog" else title
            else:
                labels += [-100] * len(title)
            tokens += title
            if not asked:  # nothing comes after the last title
                tokens += below(prompter, item)
                labels += [-100] * len(below(prompter, item))
        assert batch["input_ids"][number][: len(tokens)].tolist() == tokens
        assert batch["labels"][number][: len(tokens)].tolist() == labels
        assert batch["attention_mask"][number].sum() == len(tokens)
    if objective == "catalog":
        assert [(row, state) for row, state, *_ in batch["decisions"].tolist()] == decided
    examples = windows(Sessions.build([*"ab"], rows), prompter, 1024, objective)
    assert tokens_of(examples, prompter).tolist() == batch["attention_mask"].sum(dim=1).tolist()


def test_the_compiled_catalog_is_that_of_these_companions(data, tokenizer, tmp_path):
    def compiled(most, sessions):
        new = Dataset(data.catalog, Split(sessions, data.split.test), data.manifest)
        template = TemplateConfig(companions=most)
        return compile_catalog(template, data.catalog, tokenizer, companions=new.companions(most), cache=tmp_path)

    train = data.split.train
    some = {(2, 5): compiled(2, train), (1, 5): compiled(1, train), (2, 2): compiled(2, train.take(np.arange(2)))}
    again = compiled(2, train)
    assert len(list(tmp_path.iterdir())) == 3
    assert as_lists(again.prompter.lines) == as_lists(some[2, 5].prompter.lines)
    assert as_lists(again.prompter.answers) == as_lists(some[2, 5].prompter.answers)
    assert len({tuple(catalog.prompter.lines[16].tolist()) for catalog in some.values()}) == 3
    with pytest.raises(TemplateError, match=r"template\.companions"):
        again.add(data.catalog.take(np.array([3])), tokenizer)


@pytest.mark.parametrize(("scoring", "weight"), [("renormalised", 0), ("joint", 0), ("joint", 0.7)])
def test_a_tuned_adapter_decodes_with_the_companions_it_was_trained_with(
    dataset_dir, tiny_model, tiny_engine, tmp_path, scoring, weight
):
    data, adapter = Dataset.load(dataset_dir), tmp_path / "adapter"
    template = {"companions": 3, "max_items": 4}
    finetune(
        FinetuneConfig(
            data=dataset_dir,
            out=adapter,
            model=str(tiny_model),
            context=1024,
            max_steps=1,
            batch_size=2,
            lora={"r": 2, "alpha": 4},
            learning_rate=1e-9,
            dtype="float32",
            template=template,
        )
    )
    assert read_manifest(adapter, "finetune")["config"]["template"]["companions"] == 3
    out = tmp_path / "lists.parquet"
    recommend(
        RecommendConfig(
            data=dataset_dir,
            model=str(tiny_model),
            adapter=adapter,
            out=out,
            k=5,
            dtype="float32",
            scoring=scoring,
            prior_weight=weight,
            budget=100_000,
        )
    )
    lists = files.read(out, data.catalog).lists
    assert lists.certified.all()
    following = data.companions(3)
    assert following.lengths.max() > 1
    prompter = compile_template(TemplateConfig(**template), data.catalog, tiny_engine.tokenizer, companions=following)
    plain = compile_template(TemplateConfig(max_items=4), data.catalog, tiny_engine.tokenizer)
    answers, longer = as_lists(prompter.answers), 0

    def scored(items):
        return oracle_scores(tiny_engine.model, prompter.prompt(items).tolist(), answers, scoring)

    prior = scored(np.array([], np.int32))
    for i, items in enumerate(data.split.test.prompts):
        longer += len(prompter.prompt(items[-4:])) > len(plain.prompt(items[-4:]))
        scores = scored(items[-4:]) - weight * prior
        assert lists.scores[lists.offsets[i] : lists.offsets[i + 1]] == pytest.approx(
            np.sort(scores)[::-1][:5], abs=1e-3
        )
        assert scores[lists[i]] == pytest.approx(np.sort(scores)[::-1][:5], abs=1e-3)
    assert longer > 6


def test_the_loss_is_minus_the_score_that_ranks(dataset_dir, tiny_model, tiny_engine, tmp_path):
    data = Dataset.load(dataset_dir)
    config = FinetuneConfig(
        data=dataset_dir, out=tmp_path, model=str(tiny_model), context=1024, dtype="float32", template=TWO
    )
    trainer, _ = build_trainer(config, data)
    prompter = compile_template(TWO, data.catalog, tiny_engine.tokenizer, companions=data.companions(2))
    expected = [
        -oracle_scores(tiny_engine.model, prompter.prompt(np.array(row[:j])).tolist(), as_lists(prompter.answers))[
            row[j]
        ]
        for row in ROWS
        for j in range(1, len(row))
    ]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator([{"items": row} for row in ROWS]))
    assert float(loss) == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.parametrize("layout", ["continue", "ask"])
def test_validate_shows_them(dataset_dir, tiny_model, capsys, layout):
    template, objective = TemplateConfig(layout=layout, companions=2), "catalog"
    validate(
        ValidateConfig(data=dataset_dir, model=str(tiny_model), template=template, objective=objective, context=2048)
    )
    shown = capsys.readouterr().out
    assert "\n->" in shown
    assert "titles come back from the tokenizer as they went in" in shown


def test_where_they_cannot_be_written_they_are_refused(dataset_dir, tiny_model, catalog, tokenizer, tmp_path):
    for name in ("GenList", "Rank", "Classify"):
        with pytest.raises(ValidationError, match=f"leave it out with {name}"):
            TemplateConfig(name=name, layout="ask", companions=1)
    with pytest.raises(TemplateError, match=r"template\.companions is 2: give the companions"):
        compile_template(TWO, catalog, tokenizer)
    config = PairsConfig(data=dataset_dir, model=str(tiny_model), out=tmp_path / "p.jsonl", template=TWO)
    with pytest.raises(TemplateError, match="Leave it out of pairs"):
        pairs(config)
    assert not (tmp_path / "p.jsonl").exists()
