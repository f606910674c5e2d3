"""`validate` shows, without a model's weights, what training and decoding would see."""

import re
from itertools import pairwise

import numpy as np
import pytest

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.finetuning.validate import ValidateConfig, histogram, validate
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig


@pytest.fixture
def report_of(tiny_model, dataset_dir):
    def build(**changes):
        settings = {"data": dataset_dir, "model": str(tiny_model), "context": 1024}
        return validate(ValidateConfig(**settings | changes))["text"]

    return build


def test_the_histogram_counts_every_value_once():
    values = np.array([1, 1, 2, 3, 29, 30])
    lines = histogram("tokens", values).splitlines()
    assert lines[0] == "tokens: median 2, 95% up to 30, longest 30"
    rows = [re.fullmatch(r"\s*(\d+)–(\d+)\s+(█*)\s+(\d+)", line) for line in lines[1:]]
    bins = [(int(row[1]), int(row[2]), int(row[4])) for row in rows]
    assert bins[0] == (1, 3, 4)
    assert bins[-1] == (28, 30, 2)
    assert all(one[1] + 1 == other[0] for one, other in pairwise(bins))
    assert [count for *_, count in bins] == [int(((values >= a) & (values <= b)).sum()) for a, b, _ in bins]
    assert [len(row[3]) for row in rows] == [40, *[0] * 8, 20]


def test_one_value_is_one_bin():
    assert histogram("x", np.array([7, 7])).splitlines()[1].split() == ["7–7", "█" * 40, "2"]


@pytest.mark.parametrize(("layout", "chat"), [("continue", False), ("ask", True)])
def test_three_prompts_are_shown_as_the_model_reads_them(report_of, dataset_dir, tokenizer, capsys, layout, chat):
    template = TemplateConfig(layout=layout, chat=chat)
    report = report_of(template=template)
    assert capsys.readouterr().out == report + "\n"
    data = Dataset.load(dataset_dir)
    prompter = compile_template(template, data.catalog, tokenizer)
    prompts = [prompter.prompt(items) for items in prompter.fitting(data.split.test.prompts, 2048)]
    sizes = sorted(map(len, prompts))
    assert report.count("--- to be answered") == 3
    for name, size in (("shortest", sizes[0]), ("median", sizes[len(sizes) // 2]), ("longest", sizes[-1])):
        session = re.search(rf"--- {name} prompt: session (\S+), {size} tokens\n", report)[1]
        row = data.split.test.prompts.ids.tolist().index(session)
        answer = prompter.answers[int(data.split.test.targets[row])]
        assert tokenizer.decode(prompts[row]) + f"\n--- to be answered, {len(answer)} tokens" in report


def test_titles_and_what_is_cut_off_are_counted(report_of, dataset_dir):
    data = Dataset.load(dataset_dir)
    texts = data.catalog.texts()
    report = report_of(template=TemplateConfig(max_items=2))
    shared = len(texts) - len(set(texts))
    begin = sum(any(o != t and o.startswith(t) for o in set(texts)) for t in set(texts))
    assert f"30 items: {shared} share an earlier one's title" in report
    assert f"2 have none (written as their id), {begin} titles begin another" in report
    older = int((data.split.test.prompts.lengths > 2).sum())
    assert f"{older} of 12 test sessions are longer than template.max_items 2; 0 more lose items" in report


def test_what_does_not_fit_ends_as_it_would_in_training(report_of):
    with pytest.raises(TemplateError, match="context of 64 tokens"):
        report_of(context=64)
    with pytest.raises(TemplateError, match=r"context of 64 tokens.*Raise it with --prompt-context\.$"):
        report_of(prompt_context=64)
