"""`plan`: the work counted, the formulas by hand, the probe, devices, prices, and what it refuses."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml

from seqrec_prompt.artifacts import manifest, write_json
from seqrec_prompt.cli import main, run
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import ConfigError, CostError, DataError
from seqrec_prompt.finetuning.estimate import Shape, training_bytes, training_flops
from seqrec_prompt.finetuning.finetune import FinetuneConfig
from seqrec_prompt.finetuning.setup import build_trainer
from seqrec_prompt.planning.devices import SHIPPED, Devices, device_of
from seqrec_prompt.planning.plan import ITEM_TOKENS, ROUNDS, PlanConfig, _counted, plan
from seqrec_prompt.planning.work import padded_tokens, work_of
from seqrec_prompt.prompting.templates import TemplateConfig

DEVICE = {
    name: {"value": value, "from": "assumed"}
    for name, value in {
        "operations": 1e9, "memory": 1e12, "bandwidth": 1e8, "training_share": 0.5, "decoding_share": 0.25,
    }.items()
}  # fmt: skip


@pytest.fixture
def config_of(dataset_dir, tiny_model, tmp_path):
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump({"devices": {"mine": DEVICE | {"dollars": 3.6}}}))

    def build(**changes):
        settings = {"data": dataset_dir, "model": str(tiny_model), "context": 1024, "dtype": "float32"}
        return PlanConfig(**settings | {"device": "mine", "devices": tmp_path / "devices.yaml"} | changes)

    return build


def test_padding_is_that_of_random_batches():
    assert padded_tokens(np.full(10, 7), 4) == 70  # nothing to pad
    sizes = np.array([1, 2, 3, 100])
    assert padded_tokens(sizes, 4) == 400
    assert padded_tokens(sizes, 1) == 106
    # One batch of two holds the 100; the other is padded to 2 (1 with 2: the 100 with 3) or to 3: 200 + 4, or 200 + 6.
    assert 204 <= padded_tokens(sizes, 2) <= 206


@pytest.mark.parametrize(("batch", "accumulation", "epochs"), [(4, 1, 1.0), (4, 3, 1.0), (7, 2, 2.5), (64, 1, 0.5)])
def test_steps_are_those_that_the_trainer_takes(batch, accumulation, epochs, config_of, dataset_dir, tmp_path):
    config = config_of(batch_size=batch, gradient_accumulation=accumulation, epochs=epochs)
    trainer, facts = build_trainer(config.finetune().model_copy(update={"out": tmp_path}), Dataset.load(dataset_dir))
    rows = trainer.get_train_dataloader()
    work = work_of(config, np.full(facts["examples"], 9), np.array([5, 7]))
    taken = math.ceil(epochs * math.ceil(len(rows) / accumulation))
    assert (work.steps, work.examples) == (taken, facts["examples"])
    assert trainer.set_initial_training_values(trainer.args, rows)[-1] == taken
    assert (work.sessions, work.prompt_tokens, work.longest_prompt) == (2, 6, 7)


def test_a_plan_for_a_device_is_the_formula_worked_by_hand(config_of, tiny_model, capsys):
    found = plan(config_of(max_steps=10, batch_size=8, max_sessions=9))
    shape = Shape.of(str(tiny_model))
    told = capsys.readouterr().out
    examples, steps, a_step = re.search(r"(\d+) examples, (\d+) steps of ([\d,]+) tokens", told).groups()
    assert int(steps) == 10
    tokens = int(re.search(r"4 · parameters · tokens .* = 4 · [\d,]+ · ([\d,]+) /", told)[1].replace(",", ""))
    assert tokens == pytest.approx(10 * int(a_step.replace(",", "")), rel=0.01)
    assert found["finetune"]["seconds"] == pytest.approx(4 * shape.parameters * tokens / (1e9 * 0.5), rel=1e-3)
    assert found["finetune"]["dollars"] == pytest.approx(found["finetune"]["seconds"] / 1000)
    prompt = int(re.search(r"prompts of (\d+) tokens", told)[1])
    computing = 2 * shape.parameters * 9 * (prompt + ITEM_TOKENS * 20) / (1e9 * 0.25)
    reading = 2 * (1 + ROUNDS) * shape.parameters * 4 / 1e8  # two batches of weights in float32
    assert found["recommend"]["seconds"] == pytest.approx(computing + reading, rel=0.01)
    assert int(examples) > 0
    assert "5e-01 (assumed)" in told or "0.5 (assumed)" in told
    assert told.splitlines()[-2].startswith("rough: ")
    assert told.splitlines()[-1].startswith("in float32 it takes longer")
    assert "Python and its libraries" not in told  # those of that device are not known


def test_weights_on_another_device_are_of_the_type_that_is_asked_for(config_of, tiny_model):
    plans = {dtype: plan(config_of(dtype=dtype)) for dtype in ("float32", "bfloat16", "auto")}
    weights = Shape.of(str(tiny_model)).parameters
    for stage in ("finetune", "recommend"):
        whole, half = plans["float32"][stage]["bytes"], plans["bfloat16"][stage]["bytes"]
        assert half + 2 * weights <= whole <= 2 * half
        assert plans["auto"][stage] == plans["bfloat16"][stage]


def adapter_of(folder, template):
    folder.mkdir()
    settings = {"template": template.model_dump(), "model": "tiny"}
    write_json(folder / "manifest.json", manifest("finetune", settings, {}))
    return folder


def test_an_adapters_own_template_is_what_is_counted(config_of, tmp_path, capsys):
    template = TemplateConfig(layout="ask", instruction="Long " * 50, max_items=3)
    asked = plan(config_of(template=template))
    told = capsys.readouterr().out
    adapter = adapter_of(tmp_path / "adapter", template)
    assert plan(config_of(adapter=adapter)) == asked
    assert capsys.readouterr().out == told
    assert plan(config_of()) != asked
    assert plan(config_of(adapter=adapter, template=template)) == asked
    with pytest.raises(ConfigError, match="was trained with another template"):
        plan(config_of(adapter=adapter, template=TemplateConfig()))
    with pytest.raises(ConfigError, match=r"was trained with template Rank: Rank needs 'candidates'"):
        plan(config_of(adapter=adapter_of(tmp_path / "rank", TemplateConfig(name="Rank"))))


def test_a_probe_of_rank_orders_candidates(config_of, tmp_path, capsys):
    rows = [f"train-{i},item-{j}\n" for i in range(20) for j in (4, 11, 15, 20)]
    (tmp_path / "lists.csv").write_text("session_id,item_id\n" + "".join(rows))
    rank = {"template": TemplateConfig(name="Rank"), "candidates": tmp_path / "lists.csv", "context": 1500}
    probe = {"device": "this", "devices": None, "probe": True, "probe_steps": 1, "probe_sessions": 3, "max_steps": 10}
    found = plan(config_of(**rank, **probe))
    assert "measured: 3 sessions here" in capsys.readouterr().out
    assert found["recommend"]["seconds"] > 0


def test_shorter_lists_take_less(config_of):
    short, long = (plan(config_of(k=k))["recommend"] for k in (5, 20))
    assert short["seconds"] < long["seconds"]
    assert short["bytes"] < long["bytes"]


def test_the_latest_sessions_alone_are_counted_where_they_alone_are_trained_on(config_of, dataset_dir, tmp_path):
    data, timed = Dataset.load(dataset_dir), tmp_path / "timed"
    train = replace(data.split.train, times=np.arange(len(data.split.train.items), dtype=float))
    timed.mkdir()
    replace(data, split=replace(data.split, train=train)).save(timed)
    config = config_of(data=timed, latest=7, batch_size=2, objective="last_item")
    assert config.finetune().latest == 7
    work, sizes = _counted(config, data=Dataset.load(timed))
    assert (work.examples, work.steps, len(sizes)) == (7, 4, 7)
    _, all_sizes = _counted(config.model_copy(update={"latest": None}), Dataset.load(timed))
    assert sizes.tolist() == all_sizes[-7:].tolist()


def test_without_a_probe_the_libraries_of_this_process_count_too(config_of, capsys):
    found = plan(config_of(device="this", devices=None))
    told = capsys.readouterr().out
    libraries = [float(part) * 1e9 for part in re.findall(r"\+ ([\d.]+) GB of Python and its libraries", told)]
    assert len(libraries) == 2
    assert libraries[0] == libraries[1]
    # Told to a hundredth of a GB.
    assert 1e8 < libraries[0] - 5e6 < min(found["recommend"]["bytes"], found["finetune"]["bytes"])
    assert told.splitlines()[-1].startswith("rough: ")
    assert "--probe" in told


def test_more_sessions_than_the_data_holds_cost_in_proportion(config_of, capsys):
    given = {"sessions_at_once": 4, "rounds": 12.5, "tree_tokens": 400}
    few, many = (plan(config_of(sessions=n, **given))["recommend"] for n in (12, 12_000_000))
    assert many["seconds"] == pytest.approx(1e6 * few["seconds"])
    assert many["dollars"] == pytest.approx(1e6 * few["dollars"])
    assert many["bytes"] == few["bytes"]
    told = capsys.readouterr().out
    assert "12,000,000 sessions" in told
    assert re.search(r"· 12,000,000 · \(\d+ \+ 400\) /.* \+ 3,000,000 · 13\.5 · ", told)
    assert "titles 400, rounds 12.5: as given" in told
    for wrong, words in (
        ({"sessions": 5, "max_sessions": 5}, r"'sessions' and 'max_sessions'"),
        ({"probe": True, "device": "this", "rounds": 3}, r"'rounds' is what 'probe' measures"),
    ):
        with pytest.raises(ValueError, match=words):
            config_of(**wrong)


def test_work_and_memory_of_the_methods():
    shape = Shape(parameters=1000, layers=2, hidden=10, vocabulary=100)
    assert training_flops(shape, 50, "full") == 6 * 1000 * 50
    assert training_flops(shape, 50, checkpointing=True) == 6 * 1000 * 50
    own = {"half": True, "whole_vocabulary": False}
    # weights, gradients and two moments of 4 bytes; activations 2·34·3·5·10; no adapter
    assert training_bytes(shape, 3, 5, method="full", **own) == 16_000 + 10_200
    # adapters 2·4·14·10 of 16 bytes; activations of one layer, 34·3·5·10, and the inputs of both, 2·2·3·5·10
    again = training_bytes(shape, 3, 5, 4, checkpointing=True, **own)
    assert again == 2000 + 17_920 + 5_100 + 600


def test_a_probe_takes_real_steps_and_sessions(config_of, capsys):
    config = config_of(device="this", devices=None, probe=True, probe_steps=2, probe_sessions=4, max_steps=100)
    found = plan(config.model_copy(update={"hourly": 36.0}))
    told = capsys.readouterr().out
    assert "measured: 2 steps here" in told
    assert "measured: 4 sessions here" in told
    start, tokens, rate = re.search(r"tokens · seconds a token = ([\d.]+) \+ ([\d,]+) · (\S+) =", told).groups()
    wanted = float(start) + int(tokens.replace(",", "")) * float(rate)
    assert found["finetune"]["seconds"] == pytest.approx(wanted, rel=0.05, abs=0.1)
    assert found["finetune"]["dollars"] == pytest.approx(found["finetune"]["seconds"] / 100)
    for stage in ("finetune", "recommend"):
        assert 1e8 < found[stage]["bytes"] < 1e11  # Python with torch, and not the machine
        assert found[stage]["seconds"] > 0


def test_the_plan_is_of_the_settings_that_finetune_would_be_given(config_of):
    config = config_of(batch_size=3, method="dora", context=99, lora={"r": 2}, epochs=2.5, objective="last_item")
    planned = config.finetune()
    assert isinstance(planned, FinetuneConfig)
    assert planned.model_dump(exclude={"out"}) == FinetuneConfig(
        data=config.data, out="x", model=config.model, batch_size=3, method="dora", context=99, lora={"r": 2},
        epochs=2.5, objective="last_item", dtype="float32",
    ).model_dump(exclude={"out"})  # fmt: skip


def test_this_machine_is_measured_and_shipped_devices_say_where_they_are_from(config_of, capsys):
    shipped = Devices.model_validate(yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))).devices
    for device in shipped.values():
        assert {device.training_share.origin, device.decoding_share.origin} == {"assumed"}
        assert device.dollars is None
    this = device_of("this", None, 64, half=False)
    assert 1e7 < this.operations.value < 1e15
    assert 1e7 < this.bandwidth.value < 1e14
    found = plan(config_of(device="h100-sxm", devices=None))
    assert found["finetune"]["dollars"] is None
    assert "9.89e+14 (datasheet)" in capsys.readouterr().out


def test_a_hosted_model_is_priced_for_the_same_sessions(config_of, dataset_dir, tmp_path, capsys):
    (tmp_path / "prices.yaml").write_text(
        "date: 2026-01-01\nsource: here\nmodels:\n  big: {training: 2}\n  ft:big: {input: 1, output: 4}\n"
    )
    config = config_of(hosted="big", prices=tmp_path / "prices.yaml", encoding="bytes", epochs=3, answers=2)
    found = plan(config)
    data = Dataset.load(dataset_dir)
    generated = found["hosted generate"]
    assert generated["tokens"]["output"] == len(data.split.test) * 2 * 64
    assert generated["cost"] == pytest.approx((generated["tokens"]["input"] + 4 * generated["tokens"]["output"]) / 1e6)
    assert found["hosted finetune"]["cost"] == pytest.approx(2 * found["hosted finetune"]["tokens"]["training"] / 1e6)
    once = plan(config.model_copy(update={"epochs": 1.0}))["hosted finetune"]["tokens"]["training"]
    assert found["hosted finetune"]["tokens"]["training"] == 3 * once
    assert "at most $" in capsys.readouterr().out
    with pytest.raises(CostError, match=r"has no training price of the model 'other'"):
        plan(config.model_copy(update={"hosted": "other"}))


def test_what_does_not_fit_is_said(config_of, tmp_path, capsys):
    small = DEVICE | {"memory": {"value": 1e5, "from": "assumed"}}
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump({"devices": {"mine": small}}))
    plan(config_of())
    assert capsys.readouterr().out.count("MORE than the 0.0 GB that are there") == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("devices: {mine: {operations: {value: 1, from: heard}}}", "devices.mine.operations.from: Input should be"),
        ("[]", "not a file of devices"),
        ("devices: {}", "has no device 'mine'; it has: , and there is 'this'"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_none_of_devices_is_told(text, told, config_of, tmp_path):
    (tmp_path / "devices.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(told)):
        plan(config_of())


def test_nothing_to_do_and_settings_that_contradict_are_told(config_of, dataset_dir, capsys):
    with pytest.raises(DataError, match=r"there are no test sessions"):
        work_of(config_of(), np.array([3]), np.empty(0, np.int64))
    with pytest.raises(DataError, match=r"there are no training examples"):
        work_of(config_of(), np.empty(0, np.int64), np.array([3]))
    given = ["--data", str(dataset_dir)]
    assert run("plan", [*given, "--probe", "--device", "l4"]) == 2
    assert run("plan", [*given, "--prices", "p.yaml"]) == 2
    told = capsys.readouterr().err
    assert "'probe' runs on this machine" in told
    assert "'prices' is for a hosted model" in told


def test_a_plan_for_programs(dataset_dir, tiny_model, capsys):
    words = ["--data", str(dataset_dir), "--model", str(tiny_model), "--context", "1024", "--device", "l4", "--json"]
    assert main(["plan", *words]) == 0
    printed = capsys.readouterr()
    assert '"seconds"' in printed.out
    assert "tokens with padding" in printed.err
