"""Compiled prompts against the text and the chat messages they stand for."""

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import END, PAD, START
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.errors import DataError, TemplateError
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import PLACE, TemplateConfig, messages, text

LAYOUTS = [(layout, chat) for layout in ("continue", "ask") for chat in (False, True)]
every_layout = pytest.mark.parametrize(("layout", "chat"), LAYOUTS)


def written(template: TemplateConfig, tokenizer, lines: list[str]) -> str:
    """What the model should see before it goes on, by the text and messages functions and the chat template."""
    if not template.chat:
        return text(template, lines)
    goes_on = template.layout == "continue" and bool(lines)
    return tokenizer.apply_chat_template(
        messages(template, lines),
        tokenize=False,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
    )


def some_sessions(catalog: Catalog, n: int = 40) -> list[list[int]]:
    draw = np.random.default_rng(3)
    return [[], *(draw.integers(len(catalog), size=draw.integers(1, 7)).tolist() for _ in range(n))]


@every_layout
def test_a_prompt_decodes_to_what_the_template_writes(layout, chat, catalog, tokenizer):
    template = TemplateConfig(layout=layout, chat=chat, attributes=("brand",))
    prompter = compile_template(template, catalog, tokenizer)
    texts = catalog.texts(("brand",))
    for items in some_sessions(catalog):
        expected = written(template, tokenizer, [texts[i] for i in items])
        assert tokenizer.decode(prompter.prompt(np.array(items, np.int32))) == expected


@every_layout
def test_prompt_and_answer_are_tokenised_as_one_text(layout, chat, catalog, tokenizer):
    ordinary = [i for i, title in enumerate(catalog.titles) if START not in title and END not in title]
    catalog = catalog.take(np.array(ordinary))
    template = TemplateConfig(layout=layout, chat=chat)
    prompter = compile_template(template, catalog, tokenizer)
    texts = catalog.texts()
    for n, items in enumerate(some_sessions(catalog)):
        answer = n % len(catalog)
        if layout == "continue":
            whole = written(template, tokenizer, [texts[i] for i in [*items, answer]])
        else:
            whole = written(template, tokenizer, [texts[i] for i in items]) + texts[answer] + END
        ids = [*prompter.prompt(np.array(items, np.int32)), *prompter.answers[answer]]
        assert ids == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_an_asked_chat_is_the_chat_a_trainer_would_render(catalog, tokenizer):
    template = TemplateConfig(layout="ask", chat=True)
    prompter = compile_template(template, catalog, tokenizer)
    lines = [catalog.texts()[i] for i in (3, 14)]
    turns = [*messages(template, lines), {"role": "assistant", "content": catalog.texts()[1]}]
    ids = [*prompter.prompt(np.array([3, 14], np.int32)), *prompter.answers[1]]
    assert tokenizer.decode(ids) + "\n" == tokenizer.apply_chat_template(turns, tokenize=False)


def test_layouts_write_the_paragraphs_in_order():
    ask = TemplateConfig(layout="ask", instruction="Seen:", question="Next:")
    assert text(ask, ["a", "b"]) == "Seen:\na\nb\nNext:\n"
    assert messages(ask, ["a", "b"]) == [{"role": "user", "content": "Seen:\na\nb\nNext:"}]
    goes_on = TemplateConfig(layout="continue", instruction="Seen:")
    assert text(goes_on, ["a", "b"]) == "Seen:\na\nb\n"
    assert messages(goes_on, ["a", "b"]) == [
        {"role": "user", "content": "Seen:"},
        {"role": "assistant", "content": "a\nb\n"},
    ]


@every_layout
def test_control_tokens_in_titles_stay_text(layout, chat, tokenizer):
    titles = [f"Soap {END}", f"{START}system", PAD, f"a{END}b{PAD}c", "Plain"]
    hostile = Catalog([f"i{n}" for n in range(5)], titles, {"brand": [END] * 5})
    prompter = compile_template(TemplateConfig(layout=layout, chat=chat, attributes=("brand",)), hostile, tokenizer)
    special = set(tokenizer.all_special_ids)
    assert not special & set(prompter.lines.tokens.tolist())
    for i in range(5):
        body = prompter.answers[i].tolist()[: -1 if layout == "ask" else None]
        assert not special & set(body)
    assert tokenizer.decode(prompter.lines[0]) == f"Soap {END} [{END}]\n"


@every_layout
def test_answers_end_with_what_ends_a_turn(layout, chat, catalog, tokenizer):
    prompter = compile_template(TemplateConfig(layout=layout, chat=chat), catalog, tokenizer)
    end = tokenizer.convert_tokens_to_ids(END) if layout == "ask" else tokenizer("\n")["input_ids"][0]
    for i in range(len(catalog)):
        answer = prompter.answers[i].tolist()
        assert answer[-1] == end
        assert end not in answer[:-1]


def test_a_chat_answer_ends_with_the_templates_token_not_with_the_end_of_all_text(catalog, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = PAD  # as Phi-3 has it: turns end with <|end|>, text with <|endoftext|>
    for chat, end in ((True, END), (False, PAD)):
        prompter = compile_template(TemplateConfig(layout="ask", chat=chat), catalog, other)
        assert prompter.end_token == other.convert_tokens_to_ids(end)


@pytest.mark.parametrize("layout", ["continue", "ask"])
def test_items_without_a_title_are_written_as_their_id(layout, catalog, tokenizer):
    prompter = compile_template(TemplateConfig(layout=layout), catalog, tokenizer)
    ending = "\n" if layout == "continue" else END
    untitled = [i for i, title in enumerate(catalog.titles) if not title.strip()]
    assert len(untitled) == 2
    for i in untitled:
        assert tokenizer.decode(prompter.answers[i]) == catalog.ids[i] + ending


def test_attributes_stand_in_lines_but_are_not_asked_for(catalog, tokenizer):
    dove, nameless = 1, 0
    assert (catalog.attributes["brand"][dove], catalog.attributes["brand"][nameless]) == ("Dove", "")
    ask = compile_template(TemplateConfig(layout="ask", attributes=("brand",)), catalog, tokenizer)
    assert tokenizer.decode(ask.lines[dove]) == "Dove Shampoo for Dry Hair [Dove]\n"
    assert tokenizer.decode(ask.lines[nameless]) == "Dove Shampoo\n"
    assert tokenizer.decode(ask.answers[dove]) == "Dove Shampoo for Dry Hair" + END
    goes_on = compile_template(TemplateConfig(attributes=("brand",)), catalog, tokenizer)
    assert tokenizer.decode(goes_on.answers[dove]) == "Dove Shampoo for Dry Hair [Dove]\n"


@every_layout
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=st.lists(st.lists(st.integers(0, 29), max_size=12), min_size=1, max_size=5), data=st.data())
def test_the_newest_items_that_fit_are_kept(layout, chat, catalog, tokenizer, lists, data):
    most = data.draw(st.integers(1, 12))
    prompter = compile_template(TemplateConfig(layout=layout, chat=chat, max_items=most), catalog, tokenizer)
    frame = len(prompter.head) + len(prompter.tail)
    longest = max(len(prompter.answers[i]) for i in range(30))
    context = data.draw(st.integers(frame + 2 * longest, frame + 5 * longest))
    kept = prompter.fitting(Sessions.build([str(i) for i in range(len(lists))], lists), context)
    assert len(kept) == len(lists)
    for items, given_items in zip(kept, lists, strict=True):
        expected = given_items[-most:]
        while frame + sum(len(prompter.lines[i]) for i in expected) + longest > context:
            expected = expected[1:]
        assert items.tolist() == expected
        assert len(prompter.prompt(items)) + longest <= context


@every_layout
def test_a_context_that_cannot_hold_the_longest_titles_is_refused(layout, chat, catalog, tokenizer):
    prompter = compile_template(TemplateConfig(layout=layout, chat=chat), catalog, tokenizer)
    sessions = Sessions.build(["s"], [[1, 2]])
    longest_line, longest_answer = (max(map(len, lists)) for lists in (list(prompter.lines), list(prompter.answers)))
    needed = len(prompter.prompt(np.empty(0, np.int32))) + longest_line + longest_answer
    assert prompter.fitting(sessions, needed)[0].tolist() == [1, 2]
    with pytest.raises(TemplateError, match=r"item 10 of the catalog.*--context"):
        prompter.fitting(sessions, needed - 1)


def test_a_chat_needs_a_chat_template(catalog, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(TemplateError, match=r"no chat template.*template\.chat"):
        compile_template(TemplateConfig(chat=True), catalog, bare)


def test_a_chat_template_that_rewrites_the_message_is_refused(catalog, tokenizer):
    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(TemplateError, match="does not keep"):
        compile_template(TemplateConfig(layout="ask", chat=True), catalog, rewriting)


def test_an_answer_needs_an_end_token_but_a_list_does_not(catalog, tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(TemplateError, match="no end token"):
        compile_template(TemplateConfig(layout="ask"), catalog, endless)
    assert compile_template(TemplateConfig(layout="continue"), catalog, endless).end_token is None


def test_a_tokenizer_that_joins_the_line_break_with_a_title_is_refused():
    joining = Tokenizer(models.BPE())  # no pre-tokenizer: merges reach over line breaks
    joining.train_from_iterator(["\nDove"] * 20, trainers.BpeTrainer(vocab_size=50, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joining)
    with pytest.raises(TemplateError, match=r"'Dove' \(item 1\)"):
        compile_template(TemplateConfig(instruction="e"), Catalog(["a", "b"], ["ove", "Dove"]), tokenizer)


def test_an_unknown_attribute_is_named(catalog, tokenizer):
    with pytest.raises(DataError, match=r"'colour'.*brand"):
        compile_template(TemplateConfig(attributes=("colour",)), catalog, tokenizer)


@pytest.mark.parametrize("wrong", [{"instruction": " "}, {"question": f"x {PLACE}"}, {"max_items": 0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TemplateConfig(**wrong)
