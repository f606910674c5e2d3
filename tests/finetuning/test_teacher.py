"""A recommender as teacher: what it teaches of each decision, the loss that is made of it, and what is refused."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import PlainTrie, logprob_rows

from seqrec_prompt.artifacts import read_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.errors import ArtifactError, ConfigError
from seqrec_prompt.finetuning.examples import Collator
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.packing import pack
from seqrec_prompt.finetuning.setup import build_trainer
from seqrec_prompt.finetuning.teacher import COUNTING, Teacher, TeacherConfig
from seqrec_prompt.prompting.templates import TemplateConfig, compile_template
from seqrec_prompt.recommenders.fit import FitConfig, fit
from seqrec_prompt.recommenders.fitted import load

ROWS = [[16, 10, 3, 6, 4], [5, 8], [19, 21, 22, 4, 3, 0, 1, 2]]  # longest title, duplicates, prefixes, no title


@pytest.fixture
def fitted(dataset_dir, tmp_path):
    """Directory of a fitted recommender, by name."""

    def make(name, data=dataset_dir):
        return fit(FitConfig(data=data, recommender=name, out=tmp_path / name))

    return make


def asked_of(rows, layout):
    """(items before, target) of every lesson, in the order of the batch."""
    return [(row[:j], row[j]) for row in rows for j in (range(1, len(row)) if layout == "continue" else [len(row) - 1])]


def lessons_of(recommender, data, prompter, asked, config):
    """[[(position, {token: share})]] of each lesson, from the recommender's lists and a plain walk."""
    plain = PlainTrie(prompter.answers)
    found = []
    for seen, target in asked:
        lists = recommender.recommend(Sessions.build(["s"], [seen]), config.depth, exclude_seen=True)
        weight = dict(zip(lists.items.tolist(), lists.scores.tolist(), strict=True))
        title = prompter.answers[target].tolist()
        lesson = []
        for at, tokens in plain.decisions(title):
            below = {
                token: math.fsum(
                    value
                    for item, value in weight.items()
                    if prompter.answers[item].tolist()[: at + 1] == [*title[:at], token]
                )
                for token in tokens
            }
            whole = math.fsum(below.values())
            share = config.share if whole else 0.0
            lesson.append(
                (
                    at,
                    {t: (1 - share) * (t == title[at]) + (share * below[t] / whole if whole else 0.0) for t in tokens},
                )
            )
        found.append(lesson)
    return found


@pytest.mark.parametrize("layout", ["continue", "ask"])
@pytest.mark.parametrize("name", ["transitions", "transition-counts", "most-popular"])
def test_shares_are_those_of_a_plain_walk(fitted, dataset_dir, tokenizer, name, layout):
    data = Dataset.load(dataset_dir)
    config = TeacherConfig(recommender=fitted(name), share=0.6, depth=7)
    prompter = compile_template(TemplateConfig(layout=layout), data.catalog, tokenizer)
    trie = compile_trie(prompter.answers)
    batch = Collator(prompter, "catalog", trie, 0, Teacher.load(config, data))([{"items": row} for row in ROWS])
    expected = lessons_of(load(config.recommender, data)[0], data, prompter, asked_of(ROWS, layout), config)
    at, seen = 0, set()
    decisions = iter(batch["decisions"].tolist())
    for lesson in expected:
        for position, shares in lesson:
            _, _, node, _ = next(decisions)
            tokens = trie.token[trie.children(node)].tolist()
            assert trie.depth[node] == position
            taught = batch["shares"][at : at + len(tokens)].tolist()
            assert dict(zip(tokens, taught, strict=True)) == pytest.approx(shares, abs=1e-6)
            assert sum(taught) == pytest.approx(1)
            seen.add(sum(share > 0 for share in taught))
            at += len(tokens)
    assert at == len(batch["shares"])
    assert min(seen) == 1 < max(seen)  # the list has nothing to say of some decisions, and shares others out


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_the_cross_entropy_of_the_shares(fitted, dataset_dir, tiny_model, tiny_engine, tmp_path, packing):
    data = Dataset.load(dataset_dir)
    teacher = TeacherConfig(recommender=fitted("transitions"), share=0.6)
    config = FinetuneConfig(
        data=dataset_dir, out=tmp_path / "out", model=str(tiny_model), context=1024, dtype="float32", teacher=teacher
    )
    trainer, _ = build_trainer(config, data)
    prompter = compile_template(config.template, data.catalog, tiny_engine.tokenizer)
    asked = asked_of(ROWS, "continue")
    total = 0.0
    for (seen, target), lesson in zip(
        asked, lessons_of(load(teacher.recommender, data)[0], data, prompter, asked, teacher), strict=True
    ):
        answer = prompter.answers[target].tolist()
        rows = logprob_rows(tiny_engine.model, prompter.prompt(np.array(seen)).tolist(), answer)
        for at, shares in lesson:
            allowed = math.log(math.fsum(math.exp(rows[at][token]) for token in shares))
            total -= math.fsum(share * (rows[at][token] - allowed) for token, share in shares.items())
    batch = trainer.data_collator([{"items": row} for row in ROWS])
    batch = pack(batch) if packing else batch
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model.eval(), batch))
    assert loss == pytest.approx(total / len(asked), abs=1e-4)


def test_it_trains_and_says_by_whom(fitted, dataset_dir, tiny_model, tmp_path):
    teacher = fitted("transitions")

    def config(name, **settings):
        return FinetuneConfig(
            data=dataset_dir, out=tmp_path / name, model=str(tiny_model), context=1024, max_steps=2, batch_size=2,
            lora={"r": 2, "alpha": 4}, packing=True, teacher=settings,
        )  # fmt: skip

    finetune(config("taught", recommender=teacher))
    made = read_manifest(tmp_path / "taught", "finetune")
    assert made["config"]["teacher"] == {"recommender": str(teacher), "share": 0.7, "depth": 50}
    assert made["inputs"]["teacher.recommender"] == load(teacher, Dataset.load(dataset_dir))[1]
    finetune(config("alone"))
    assert "teacher.recommender" not in read_manifest(tmp_path / "alone", "finetune")["inputs"]
    taught, alone = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("taught", "alone"))
    assert taught != alone


def test_the_less_it_teaches_the_nearer_the_loss_is_to_that_of_the_targets(fitted, dataset_dir, tokenizer):
    data = Dataset.load(dataset_dir)
    prompter = compile_template(TemplateConfig(), data.catalog, tokenizer)
    trie, found = compile_trie(prompter.answers), {}
    for share in (1e-9, 1.0):
        teacher = Teacher.load(TeacherConfig(recommender=fitted("most-popular"), share=share), data)
        batch = Collator(prompter, "catalog", trie, 0, teacher)([{"items": row} for row in ROWS])
        start = np.cumsum([0, *(trie.n_children[node] for node in batch["decisions"][:, 2])])[:-1]
        found[share] = batch["shares"][start + batch["decisions"][:, 3].numpy()]
    assert found[1e-9].min() == pytest.approx(1)
    assert found[1.0].min() < 0.1


def test_what_cannot_teach_is_refused(fitted, dataset_dir, tiny_model, tmp_path):
    settings = {"data": dataset_dir, "out": tmp_path / "out", "model": str(tiny_model)}
    teacher = {"recommender": fitted("most-popular")}
    for changes, message in (
        ({"objective": "all_items", "teacher": teacher}, "objective 'catalog' with GenItem, not 'all_items' with"),
        ({"teacher": {"share": 0.5}}, "'teacher' has settings but no teacher.recommender"),
    ):
        with pytest.raises(ValidationError, match=message):
            FinetuneConfig(**settings | changes)
    parts = (teacher["recommender"], fitted("transitions"))
    fit(FitConfig(data=dataset_dir, recommender="blend", blend={"parts": parts}, out=tmp_path / "both"))
    with pytest.raises(ConfigError, match=f"both: the scores of Blend are no shares.*{COUNTING[0]}"):
        finetune(FinetuneConfig(**settings, teacher={"recommender": tmp_path / "both"}))
    with pytest.raises(ArtifactError, match="nowhere"):
        finetune(FinetuneConfig(**settings, teacher={"recommender": tmp_path / "nowhere"}))
    with pytest.raises(ArtifactError, match="lies inside 'out'"):
        finetune(FinetuneConfig(**settings | {"out": tmp_path}, teacher=teacher))
    assert not (tmp_path / "out" / "manifest.json").exists()
