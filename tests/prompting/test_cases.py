"""What each variant shows and asks for, against cases worked by hand."""

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec_prompt.config import load
from seqrec_prompt.data.lists import Candidates
from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.embeddings.clusters import Clusters
from seqrec_prompt.errors import ConfigError, DataError
from seqrec_prompt.finetuning.validate import ValidateConfig
from seqrec_prompt.prompting.cases import NEEDS, lessons, questions
from seqrec_prompt.prompting.prompter import LISTS_SHARE, compile_template
from seqrec_prompt.prompting.templates import VARIANTS, TemplateConfig, messages, text
from seqrec_prompt.ragged import TokenLists

NAMES = ("GenItem", "GenList", "Classify", "Rank")
CONTEXT = 4096
HOLDOUT = Holdout(Sessions.build(["s", "t", "u"], [[3, 14], [15], [0, 1, 2]]), np.array([16, 17, 18], np.int32))


def listed(**lists):
    return Candidates("lists.parquet", {name: np.array(items, np.int32) for name, items in lists.items()})


@pytest.fixture
def prompter_of(catalog, tokenizer):
    def build(name, clusters=(), **changes):
        return compile_template(TemplateConfig(name=name, **changes), catalog, tokenizer, clusters)

    return build


# --- templates as files


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_file_of_a_variant_is_what_its_name_gives(name):
    file = VARIANTS / f"{name}.yaml"
    template = TemplateConfig(name=name)
    assert template == TemplateConfig(file=file) == TemplateConfig.model_validate(template.resolved())
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert {key: template.resolved()[key] for key in written} == written
    assert template.layout == ("continue" if name == "GenItem" else "ask")


def test_the_defaults_that_help_shows_are_those_of_genitem():
    fields = {name: field.default for name, field in TemplateConfig.model_fields.items()}
    assert TemplateConfig().model_dump() == {name: value for name, value in fields.items() if name != "file"}


def test_a_copied_and_edited_file_counts_by_what_it_says(tmp_path):
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    text = (VARIANTS / "GenList.yaml").read_text(encoding="utf-8")
    one.write_text(text.replace("One shopping session", "One evening"))
    other.write_text(one.read_text())
    template = TemplateConfig(file=one)
    assert template.instruction.startswith("One evening")
    assert template.resolved() == TemplateConfig(file=other).resolved()
    assert template != TemplateConfig(name="GenList")
    one.write_text(text)
    assert TemplateConfig(file=one).resolved() == TemplateConfig(name="GenList").resolved()
    # Settings beside the file win, and what a file leaves out is the variant's.
    other.write_text("name: Rank\nlist_length: 7\n")
    template = TemplateConfig(file=other, question="Sorted:")
    assert (template.name, template.list_length, template.question) == ("Rank", 7, "Sorted:")
    assert template.layout == "ask"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"t\.yaml: No such file"),
        ("name: [", r"t\.yaml: not valid YAML"),
        ("just words", r"t\.yaml: expected 'key: value' lines"),
        ("nmae: Rank", "unknown setting 'template.nmae': did you mean 'template.name'"),
        ("name: Sort", "'template.name' = 'Sort'"),
        ("name: Rank\nlayout: continue", "Rank is asked for"),
        ("list_length: 0", r"'template\.list_length' = 0"),
    ],
)
def test_a_template_file_that_is_none_is_explained(tmp_path, content, message):
    file = tmp_path / "t.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(ValidateConfig, None, {"data": "x", "template.file": str(file)}, verb="validate")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", ["candidates", "embeddings", None])
def test_just_what_a_variant_needs_is_asked_for(name, given):
    values = {"data": "x", "template.name": name} | ({given: "somewhere"} if given else {})
    if NEEDS.get(name) == given:
        assert load(ValidateConfig, None, values, verb="validate").template.name == name
        return
    with pytest.raises(ConfigError, match=f"{name} (needs|has no use for) '(candidates|embeddings)'"):
        load(ValidateConfig, None, values, verb="validate")


# --- prompts


@pytest.mark.parametrize("chat", [False, True])
def test_a_rank_prompt_decodes_to_what_the_template_writes(prompter_of, catalog, tokenizer, chat):
    prompter = prompter_of("Rank", chat=chat, attributes=("brand",))
    lines, titles = catalog.texts(("brand",)), catalog.texts()
    for items, those in (([3, 14, 20], [0, 15, 4]), ([], [7]), ([9], [])):
        session, offered = [lines[i] for i in items], [lines[i] for i in those]
        plain = text(prompter.template, session, offered)
        expected = plain
        if chat:
            turns = messages(prompter.template, session, offered)
            expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        found = prompter.prompt(np.array(items, np.int32), np.array(those, np.int32))
        assert tokenizer.decode(found) == expected
        assert plain.splitlines() == [
            "One shopping session, one item per line:", *session, "Items that may come next, in no order:", *offered,
            "The same items, the most likely first, one per line:",
        ]  # fmt: skip
        answer = np.concatenate(prompter.answer(np.array(those, np.int32)))
        assert tokenizer.decode(answer) == "".join(f"{titles[i]}\n" for i in those) + "<|im_end|>"


def test_prompt_and_list_are_tokenised_as_one_text(prompter_of, catalog, tokenizer):
    prompter = prompter_of("GenList")
    titles = catalog.texts()
    whole = text(prompter.template, [titles[3]]) + f"{titles[15]}\n{titles[20]}\n<|im_end|>"
    found = np.concatenate([prompter.prompt(np.array([3])), *prompter.answer(np.array([15, 20]))])
    assert found.tolist() == tokenizer(whole)["input_ids"]


# --- cases


def test_a_list_begins_with_the_target_and_leaves_out_what_the_session_holds(prompter_of):
    prompter = prompter_of("GenList", list_length=4)
    given = listed(s=[14, 20, 16, 3, 21, 20, 22, 23], u=[18])
    cases = lessons(prompter, HOLDOUT, CONTEXT, given, None)
    assert cases.shown.ids.tolist() == ["s", "u"]  # nothing is known for t
    assert [row.tolist() for row in cases.answers] == [[16, 20, 21, 22], [18]]
    assert [row.tolist() for row in cases.shown] == [[3, 14], [0, 1, 2]]
    assert cases.candidates is None


def test_a_list_to_learn_from_holds_each_title_once(prompter_of, catalog):
    titles = catalog.texts()
    one, twin = next((i, j) for i in range(30) for j in range(i) if titles[i] == titles[j])
    prompter = prompter_of("GenList")
    holdout = Holdout(Sessions.build(["s", "t"], [[20], [21]]), np.array([16, one], np.int32))
    cases = lessons(prompter, holdout, CONTEXT, listed(s=[one, 17, twin, 18], t=[17, twin, 18]), None)
    assert [row.tolist() for row in cases.answers] == [[16, one, 17, 18], [one, 17, 18]]
    rank = lessons(prompter_of("Rank"), holdout, CONTEXT, listed(s=[one, 17, twin, 18]), None)
    assert [row.tolist() for row in rank.answers] == [[16, one, 17, twin, 18]]  # all that are offered


def test_lists_that_the_context_cuts_are_counted(prompter_of):
    prompter = prompter_of("GenList")
    given = listed(s=[10, *range(18, 29)], t=[18])  # title 10 takes 295 tokens
    whole = lessons(prompter, HOLDOUT, CONTEXT, given, None)
    assert (whole.cut, whole.describe()) == (0, "2 to 13 titles, 7.5 on average")
    short = lessons(prompter, HOLDOUT, 750, given, None)
    assert short.answers.lengths[0] < 13
    assert short.cut == int((short.answers.lengths < whole.answers.lengths).sum()) > 0
    assert f"{short.cut} of 2 cut short by the context (--context)" in short.describe()


def test_candidates_hide_where_the_target_stands(prompter_of):
    prompter = prompter_of("Rank", list_length=4)
    given = listed(s=[14, 20, 16, 3, 21], t=[25, 2], u=[5, 9])
    cases = lessons(prompter, HOLDOUT, CONTEXT, given, None)
    assert [row.tolist() for row in cases.answers] == [[16, 14, 20, 3], [17, 25, 2], [18, 5, 9]]
    assert [row.tolist() for row in cases.candidates] == [[3, 14, 16, 20], [2, 17, 25], [5, 9, 18]]
    asked = questions(prompter, HOLDOUT, CONTEXT, given, None)
    assert [row.tolist() for row in asked.candidates] == [[3, 14, 16, 20], [2, 25], [5, 9]]  # no target comes in
    assert asked.answers.tokens.tolist() == HOLDOUT.targets.tolist()


def test_classify_asks_for_the_cluster_of_the_target(prompter_of, catalog):
    clusters = Clusters(np.arange(30, dtype=np.int32) % 3, np.array([4, 9, 12], np.int32))
    prompter = prompter_of("Classify", clusters.names(catalog))
    for make in (lessons, questions):
        cases = make(prompter, HOLDOUT, CONTEXT, None, clusters)
        assert [row.tolist() for row in cases.answers] == [[1], [2], [0]]
    assert len(prompter.answers) == 3


def test_sessions_without_candidates_are_told(prompter_of):
    with pytest.raises(DataError, match=r"no list for any of 3 train sessions, e\.g\. 's'"):
        lessons(prompter_of("GenList"), HOLDOUT, CONTEXT, listed(other=[1]), None)
    with pytest.raises(DataError, match=r"no candidates for 2 of 3 sessions, e\.g\. 't'"):
        questions(prompter_of("Rank"), HOLDOUT, CONTEXT, listed(s=[1]), None)


@pytest.mark.parametrize("name", ["GenList", "Rank"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_example_passes_its_context(prompter_of, catalog, name, data):
    """And nothing is left out that would fit: of lists up to their half, of sessions in what is left."""
    prompter = prompter_of(name, max_items=30)
    some = st.lists(st.integers(0, 29), min_size=1, max_size=30, unique=True)
    history, given_list = data.draw(some), data.draw(some)
    longest, frame = int(prompter.lines.lengths.max()), CONTEXT - prompter.space(CONTEXT)
    context = data.draw(st.integers(frame + 4 * longest + 2, frame + 8 * longest))
    target = data.draw(st.integers(0, 29))
    holdout = Holdout(Sessions.build(["s"], [history]), np.array([target], np.int32))
    cases = lessons(prompter, holdout, context, listed(s=given_list), None)
    answers, shown = cases.answers[0].tolist(), cases.shown[0].tolist()
    size = len(cases.prompt(0, prompter)) + len(cases.answer(0, prompter))
    assert size <= context
    copies = 2 if name == "Rank" else 1
    wanted = [target, *(i for i in given_list if i != target and (name == "Rank" or i not in history))]
    if name == "GenList":  # each title once
        first = {}
        for item in wanted:
            first.setdefault(catalog.texts()[item], item)
        wanted = list(first.values())
    wanted = wanted[:20]
    assert answers == wanted[: len(answers)]
    half = LISTS_SHARE * prompter.space(context)
    if len(answers) < len(wanted):
        assert copies * sum(prompter.lines.lengths[wanted[: len(answers) + 1]]) > half
    assert shown == history[len(history) - len(shown) :]
    if len(shown) < len(history):
        assert size + prompter.lines.lengths[history[-len(shown) - 1]] > context


def test_lists_are_cut_one_by_one(prompter_of):
    prompter = prompter_of("GenList", list_length=3)
    lists = TokenLists.of([[1, 2, 3, 4], [], [10, 1], [5]])
    assert [row.tolist() for row in prompter.shortened(lists, CONTEXT)] == [[1, 2, 3], [], [10, 1], [5]]
    tight = CONTEXT - prompter.space(CONTEXT) + 2 * int(prompter.answers.lengths[10])
    assert [row.tolist() for row in prompter.shortened(lists, tight)][2:] == [[10], [5]]
