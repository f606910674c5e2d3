"""Configuration: one class gives the flags, the YAML keys, the help and the error messages."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from seqrec_prompt.config import Config, load, parse
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.finetuning.finetune import FinetuneConfig
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.recommenders.recommend import RecommendConfig


class Oven(Config):
    heat: int = Field(180, ge=50, description="degrees, 100% exact")
    fan: bool = Field(True, description="hot air")
    rack: Literal["top", "middle"] = Field("middle", description="where the tin goes")


class Bake(Config):
    flour: float = Field(description="grams of flour")
    tin: Path = Field(description="what it is baked in")
    baker: str | None = Field(None, description="who bakes")
    spices: tuple[str, ...] = Field((), description="what goes in")
    turns: tuple[Annotated[int, Field(ge=0)], ...] = Field((10, 20), description="minutes at which it is turned")
    glaze: bool = Field(False, description="brush it")
    oven: Oven = Oven()
    second_oven: Oven | None = Field(None, description="another one")
    toppings: tuple[str, ...] | None = Field(None, description="what goes on top")

    @model_validator(mode="after")
    def _spiced(self):
        if self.glaze and not self.spices:
            raise ValueError("a glaze needs --spices")
        return self


NEEDED = ["--flour", "500", "--tin", "round"]


def bake(*argv):
    return parse(Bake, argv, verb="bake")


def message_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_flags_fill_every_kind_of_field():
    config = bake(*NEEDED, "--baker", "Ann", "--spices", "anis", "salt", "--turns", "7", "--oven.heat=200", "--glaze")
    assert config == Bake(
        flour=500.0,
        tin=Path("round"),
        baker="Ann",
        spices=("anis", "salt"),
        turns=(7,),
        glaze=True,
        oven=Oven(heat=200),
    )
    assert config.second_oven is None


def test_precedence_is_defaults_then_file_then_flags(yaml_file):
    file = yaml_file("flour: 300\ntin: long\nturns: [1]\noven: {heat: 210, fan: false}\n")
    config = bake("--config", str(file), "--flour", "400", "--oven.heat", "220")
    assert (config.flour, config.tin, config.turns) == (400, Path("long"), (1,))
    assert config.oven == Oven(heat=220, fan=False, rack="middle")


def test_load_takes_dotted_overrides(yaml_file):
    file = yaml_file("flour: 300\ntin: long\noven: {heat: 210}\n")
    config = load(Bake, file, {"oven.rack": "top", "second_oven.fan": False}, verb="bake")
    assert config.oven == Oven(heat=210, rack="top")
    assert config.second_oven == Oven(fan=False)


def test_numbers_written_with_an_exponent_are_numbers(yaml_file):
    # YAML 1.1 reads 5e2 as a text.
    assert load(Bake, yaml_file("flour: 5e2\ntin: long"), verb="bake").flour == 500


@pytest.mark.parametrize(("flag", "value"), [("--glaze", True), ("--no-glaze", False)])
def test_booleans_are_switched_both_ways(yaml_file, flag, value):
    file = yaml_file(f"flour: 1\ntin: a\nspices: [salt]\nglaze: {str(not value).lower()}\n")
    assert bake("--config", str(file), flag).glaze is value


def test_none_on_the_command_line_unsets_what_the_file_sets(yaml_file):
    file = yaml_file("flour: 1\ntin: a\nbaker: Ann\n")
    assert bake("--config", str(file), "--baker", "none").baker is None
    assert bake("--flour", "1", "--tin", "none").tin == Path("none")  # where none is no value, it is a word


def test_none_on_the_command_line_empties_a_list_that_may_be_empty(yaml_file):
    file = yaml_file("flour: 1\ntin: a\nspices: [salt]\ntoppings: [nuts]\n")
    assert bake("--config", str(file), "--spices", "none").spices == ()
    assert bake("--config", str(file), "--spices", "none", "salt").spices == ("none", "salt")
    assert bake("--config", str(file), "--toppings", "none").toppings is None
    assert "'turns.0' = 'none'" in message_of(bake, *NEEDED, "--turns", "none")  # always has some


def test_nested_booleans_are_switched_both_ways():
    assert bake(*NEEDED, "--no-oven.fan").oven.fan is False
    assert bake(*NEEDED, "--second-oven.fan").second_oven == Oven(fan=True)


def test_an_optional_template_is_built_only_when_one_of_its_settings_is_given(yaml_file):
    needed = ["--data", "d", "--out", "o"]
    assert parse(RecommendConfig, needed, verb="recommend").template is None
    given = parse(RecommendConfig, [*needed, "--template.layout", "ask"], verb="recommend")
    assert given.template == TemplateConfig(layout="ask")
    file = yaml_file("template: null\n")
    again = parse(RecommendConfig, [*needed, "--config", str(file), "--template.layout", "ask"], verb="recommend")
    assert again == given


def test_a_file_is_flat_or_in_sections(yaml_file):
    flat = load(Bake, yaml_file("flour: 1\ntin: a\n"), verb="bake")
    sections = load(Bake, yaml_file("mix: {speed: 3}\nbake: {flour: 1, tin: a}\n"), verb="bake")
    assert flat == sections == Bake(flour=1, tin=Path("a"))


def test_a_file_of_other_verbs_is_refused(yaml_file):
    message = message_of(load, Bake, yaml_file("mix: {speed: 3}\nserve: {hot: true}\n"), verb="bake")
    assert "settings.yaml: has sections mix, serve but none named 'bake'" in message


def test_an_empty_section_means_defaults(yaml_file):
    """All lines of a section commented out."""
    file = yaml_file("mix: {speed: 3}\nbake:\n  # flour: 1\n")
    assert load(Bake, file, {"flour": 1, "tin": "a"}, verb="bake") == Bake(flour=1, tin=Path("a"))


def test_an_empty_file_means_defaults(yaml_file):
    assert load(Bake, yaml_file("# nothing\n"), {"flour": 1, "tin": "a"}, verb="bake").flour == 1


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("flours: 1", "unknown setting 'flours': did you mean 'flour'?"),
        ("oven: {haet: 3}", "unknown setting 'oven.haet': did you mean 'oven.heat'?"),
        ("second_oven: {racks: top}", "unknown setting 'second_oven.racks': did you mean 'second_oven.rack'?"),
        ("zzzzzz: 1", "unknown setting 'zzzzzz'; see --help"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(yaml_file, text, near):
    assert near in message_of(load, Bake, yaml_file(f"flour: 1\ntin: a\n{text}\n"), verb="bake")


def test_a_nested_key_given_without_its_parent_is_recognised(yaml_file):
    """`layout: ask` instead of `template: {layout: ask}`."""
    file = yaml_file("data: d\nout: o\nlayout: ask\n")
    assert "did you mean 'template.layout'?" in message_of(load, FinetuneConfig, file, verb="finetune")


@pytest.mark.parametrize(
    ("flag", "near"),
    [("--glase", "--glaze"), ("--oven.haet=3", "--oven.heat"), ("--second-oven.racks", "--second-oven.rack")],
)
def test_an_unknown_flag_is_named_with_the_nearest(flag, near):
    assert f"unknown setting '{flag.split('=')[0]}': did you mean '{near}'?" in message_of(bake, *NEEDED, flag)


def test_flags_are_not_abbreviated():
    assert "unknown setting '--glaz'" in message_of(bake, *NEEDED, "--glaz")


def test_words_that_belong_to_no_flag_are_named():
    assert "unexpected argument 'yes'" in message_of(bake, *NEEDED, "--glaze", "yes")


def test_all_problems_are_reported_together(yaml_file):
    file = yaml_file("flower: 1\noven: {heat: 3, rack: low}\nturns: [soon]\n")
    message = message_of(bake, "--config", str(file), "--second-oven.heat", "warm")
    assert message.startswith(f"{file}: 7 problems:")
    for part in (
        "unknown setting 'flower': did you mean 'flour'?",
        "'flour' is missing: give --flour",
        "'tin' is missing: give --tin",
        "'oven.heat' = 3: ",
        "'oven.rack' = 'low': Input should be 'top' or 'middle'",
        "'turns.0' = 'soon': ",
        "'second_oven.heat' = 'warm': ",
    ):
        assert part in message


def test_a_choice_that_is_none_is_answered_with_the_nearest():
    message = message_of(bake, *NEEDED, "--oven.rack", "midle")
    assert message.startswith("'oven.rack' = 'midle': Input should be 'top' or ")
    assert message.endswith(": did you mean 'middle'?")


def test_one_problem_is_one_line():
    assert message_of(bake, "--tin", "round") == "'flour' is missing: give --flour or set it in the config file"


def test_a_missing_flag_is_written_as_on_the_command_line():
    class Long(Config):
        very_long: int

    assert "'very_long' is missing: give --very-long " in message_of(parse, Long, [], verb="long")


def test_a_rule_over_several_fields_speaks_for_itself():
    assert message_of(bake, *NEEDED, "--glaze") == "a glaze needs --spices"
    message = message_of(
        parse,
        FinetuneConfig,
        ["--data", "d", "--out", "o", "--objective", "all_items", "--template.layout", "ask"],
        verb="finetune",
    )
    assert message.startswith("objective 'all_items' needs template.layout 'continue'")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "No such file"),
        ("- a\n- b\n", "expected 'key: value' lines, found a list"),
        ("just words", "expected 'key: value' lines, found a str"),
        ("flour: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(yaml_file, tmp_path, text, part):
    file = tmp_path / "settings.yaml" if text is None else yaml_file(text)
    message = message_of(bake, "--config", str(file))
    assert message.startswith(f"{file}: ")
    assert part in message


def test_a_config_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"flour: \xff\xfe\n")
    assert "not valid YAML" in message_of(bake, "--config", str(file))


def test_a_directory_given_as_config_is_named(tmp_path):
    assert str(tmp_path) in message_of(bake, "--config", str(tmp_path))


def test_configs_cannot_be_changed_and_defaults_are_checked():
    with pytest.raises(ValueError, match="frozen"):
        bake(*NEEDED).flour = 3

    class Wrong(Config):
        heat: int = Field(3, ge=50)

    assert "'heat' = 3: " in message_of(load, Wrong, verb="wrong")


def test_a_resolved_config_can_be_run_again(yaml_file):
    import yaml

    config = bake(*NEEDED, "--second-oven.heat", "90", "--spices", "anis")
    file = yaml_file(yaml.safe_dump(config.resolved()))
    assert load(Bake, file, verb="bake") == config
    assert config.resolved()["turns"] == [10, 20]


def test_help_shows_every_field_with_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as left:
        parse(Bake, ["--help"], verb="bake", description="Bakes.", example="seqrec-prompt bake --flour 1")
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "usage: seqrec-prompt bake",
        "Bakes.",
        "example: seqrec-prompt bake --flour 1",
        "--flour X grams of flour (required)",
        "--tin PATH what it is baked in (required)",
        "--baker TEXT who bakes (default: none) --spices",
        "--spices TEXT [TEXT ...] what goes in --turns",
        "--turns N [N ...] minutes at which it is turned (default: 10 20)",
        "--glaze, --no-glaze brush it (default: no)",
        "--oven.heat N degrees, 100% exact (default: 180)",
        "--oven.fan, --no-oven.fan hot air (default: yes)",
        "--oven.rack top|middle where the tin goes (default: middle)",
        "--second-oven.heat N degrees, 100% exact (default: 180)",
        "--config FILE YAML file with these settings, flat or under 'bake:'; flags given beside it win",
    ):
        assert part in shown
