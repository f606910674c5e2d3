"""`plan`: what fine-tuning and generation will take, before it is spent: time, memory, money, and the formula."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import read_manifest
from seqrec_prompt.config import Config
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, LoraConfig
from seqrec_prompt.planning.devices import THIS
from seqrec_prompt.prompting.cases import check_needs
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.recommenders.llm.settings import LLMConfig

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.finetuning.estimate import Shape
    from seqrec_prompt.planning.devices import Device
    from seqrec_prompt.planning.probe import Decoded, Trained
    from seqrec_prompt.planning.work import Work

# After a prompt, without a probe: what SmolLM2 took for an item of a list of 20 on Amazon Beauty, and for the list
# (eval/results/decoding.md).
ITEM_TOKENS, ROUNDS = 5.2, 5.2
# By whether it is planned for this machine: only there is anything better.
ROUGH = {
    True: "rough: computed from shapes; it may take half of that or twice as much, of memory above all. --probe takes "
    "a few real steps and tells it closely",
    False: "rough: computed from shapes and constants that nobody measured there; believe the order of magnitude",
}


class PlanConfig(Config):
    """Settings of `plan`: those of `finetune` and `recommend` that cost, and where it is to run."""

    data: Path = Field(description="directory made by 'prepare'")
    device: str = Field("this", description="'this' machine, or a device of --devices")
    devices: Path | None = Field(
        None, description="YAML file of devices, to be written like seqrec_prompt/planning/devices.yaml, the default"
    )
    probe: bool = Field(False, description="run a few real steps and sessions on this machine and compute from those")
    probe_steps: int = Field(4, ge=1, description="training steps of the probe")
    probe_sessions: int = Field(16, ge=1, description="sessions of the probe")
    hourly: float | None = Field(None, ge=0, description="dollars an hour of the device")
    hosted: str | None = Field(None, description="price this hosted model, too, for the same examples and sessions")
    prices: Path | None = Field(None, description="with hosted: YAML file of prices, as for 'hosted finetune'")
    encoding: str | None = Field(None, description="with hosted: tiktoken encoding, or 'bytes', an upper bound")
    answers: int = Field(20, ge=1, description="with hosted: answers a session")
    max_tokens: int = Field(64, ge=1, description="with hosted: tokens of an answer at most")

    model: str = Field("smollm2", description="hub name, directory, or 'smollm2' (bundled)")
    revision: str | None = Field(None, description="revision of a hub model")
    adapter: Path | None = Field(None, description="adapter to decode with in the probe, and whose template it is")
    template: TemplateConfig = TemplateConfig()
    candidates: Path | None = Field(None, description="as for 'finetune'")
    embeddings: Path | None = Field(None, description="as for 'finetune'")
    objective: Literal["last_item", "all_items", "catalog"] = Field("catalog", description="as for 'finetune'")
    method: Literal["lora", "dora", "qlora", "full"] = Field("lora", description="as for 'finetune'")
    lora: LoraConfig = LoraConfig()
    latest: int | None = Field(None, ge=1, description="train on so many of the latest sessions alone")
    context: int = Field(512, ge=16, description="longest training example in tokens")
    epochs: float = Field(1.0, gt=0, description="passes over the training examples")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps")
    batch_size: int = Field(8, ge=1, description="examples a step")
    gradient_accumulation: int = Field(1, ge=1, description="batches summed before a step")
    gradient_checkpointing: bool = Field(False, description="less memory, about a third slower")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the frozen base model")
    max_sessions: int | None = Field(None, ge=1, description="test sessions to recommend for; unset: all")
    sessions: int | None = Field(
        None, ge=1, description="plan for so many sessions like those of the data, which holds fewer"
    )
    rounds: float = Field(ROUNDS, gt=0, description="without probe: forwards after a prompt, as manifests tell them")
    tree_tokens: float | None = Field(
        None, gt=0, description="without probe: tokens after a prompt, likewise; unset: 5.2 an item"
    )
    k: int = Field(20, ge=1, description="items a session")
    prompt_context: int = Field(2048, ge=16, description="longest prompt with a title, as context for 'recommend'")
    sessions_at_once: int = Field(8, ge=1, description="sessions decoded together, as batch_size for 'recommend'")

    @model_validator(mode="after")
    def _possible(self) -> PlanConfig:
        if self.adapter is None:  # which brings its template
            check_needs(self.template, self.candidates, self.embeddings)
        if self.probe and self.device != THIS:
            raise ValueError("'probe' runs on this machine: leave out 'device', or plan for the other without it")
        if self.sessions is not None and self.max_sessions is not None:
            raise ValueError("'sessions' and 'max_sessions' both say how many: leave out one")
        if self.probe and (told := {"rounds", "tree_tokens"} & self.model_fields_set):
            raise ValueError(f"'{min(told)}' is what 'probe' measures: leave out one or the other")
        strange = {"prices", "encoding", "answers", "max_tokens"} & self.model_fields_set
        if self.hosted is None and strange:
            raise ValueError(f"'{min(strange)}' is for a hosted model: name it with 'hosted'")
        return self

    def wanted(self, there: int) -> int:
        """How many sessions to recommend for, of so many test sessions."""
        return self.sessions or min(there, self.max_sessions or there)

    @property
    def titles(self) -> float:
        """Tokens of titles that are read after a prompt, without a probe."""
        return ITEM_TOKENS * self.k if self.tree_tokens is None else self.tree_tokens

    def finetune(self) -> FinetuneConfig:
        """The training that is planned."""
        shared = {name: getattr(self, name) for name in FinetuneConfig.model_fields if name in type(self).model_fields}
        return FinetuneConfig(**shared, out=Path("planned"))

    def llm(self) -> LLMConfig:
        """The LLM that is planned to recommend."""
        own = {"context": self.prompt_context, "batch_size": self.sessions_at_once, "dtype": self.dtype}
        clusters = self.embeddings if self.adapter is None and self.template.name == "Classify" else None
        return LLMConfig(
            model=self.model, revision=self.revision, adapter=self.adapter, embeddings=clusters,
            template=None if self.adapter else self.template, **own,
        )  # fmt: skip


@dataclass(frozen=True)
class Need:
    """What one stage takes, and how that was computed."""

    seconds: float
    bytes: float
    formula: tuple[str, ...]


def plan(config: PlanConfig) -> dict[str, Any]:
    """Print what `finetune` and `recommend` will take with these settings, formula and origin of each constant.

    Returns, for 'finetune' and 'recommend', seconds, bytes and dollars (None where no price is known), and with
    `hosted` the quotes. Nothing is written. Raises what the two verbs raise for these settings, and CostError for a
    hosted model without a price.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.hardware import torch_dtype
    from seqrec_prompt.finetuning.estimate import Shape, duration, free_bytes
    from seqrec_prompt.planning.devices import device_of
    from seqrec_prompt.planning.hosted import quotes

    data = Dataset.load(config.data)
    config = config if config.adapter is None else _of_adapter(config, config.adapter)
    offers = quotes(config, data) if config.hosted is not None else {}
    work, sizes = _counted(config, data)
    shape = Shape.of(config.model, config.revision)
    dollars = config.hourly
    if config.probe:
        trained, decoded = _probed(config, data, sizes)
        needs = {"finetune": _training_by_probe(work, trained), "recommend": _decoding_by_probe(work, decoded)}
        memory = float(free_bytes())
    else:
        needs = {}
        for stage, compute in (("finetune", _training), ("recommend", _decoding)):
            # A CPU trains over weights in bfloat16 where it can, and decodes in float32.
            here = torch_dtype(config.dtype, training=stage == "finetune")
            half = str(here) != "torch.float32" if config.device == THIS else config.dtype != "float32"
            device = device_of(config.device, config.devices, shape.hidden, half=half)
            needs[stage] = compute(config, shape, work, device, half=half)
        memory, dollars = device.memory.value, device.dollars if config.hourly is None else config.hourly
    lines, result = [], {}
    counts = {
        "finetune": f"{work.examples:,} examples, {work.steps:,} steps of {work.step_tokens:,.0f} tokens with padding",
        "recommend": f"{work.sessions:,} sessions, prompts of {work.prompt_tokens:.0f} tokens",
    }
    for stage, need in needs.items():
        money = None if dollars is None else need.seconds / 3600 * dollars
        result[stage] = {"seconds": need.seconds, "bytes": need.bytes, "dollars": money}
        fits = "" if need.bytes <= memory else f"; MORE than the {memory / 1e9:.1f} GB that are there"
        told = f"{duration(need.seconds)}, {need.bytes / 1e9:.2f} GB{fits}"
        told += "" if money is None else f", ${money:.4f} at ${dollars:g} an hour"
        lines += [f"{stage}: {counts[stage]}", f"  {told}", *(f"    {line}" for line in need.formula)]
    for stage, offer in offers.items():
        result[f"hosted {stage}"] = offer.facts()
        lines += [f"hosted {stage}: {str(offer).removeprefix('quote: ')}"]
    if not config.probe:
        lines.append(ROUGH[config.device == THIS])
        if config.device != THIS and config.dtype == "float32":
            lines.append("in float32 it takes longer: operations of a device are mostly told for bfloat16")
    print("\n".join(lines))
    return result


def _of_adapter(config: PlanConfig, adapter: Path) -> PlanConfig:
    """The plan with the template that the adapter was trained with. Raises ConfigError where it does not fit."""
    trained = read_manifest(adapter, "finetune", "prefer")
    template = TemplateConfig.model_validate(trained["config"]["template"])
    if "template" in config.model_fields_set and config.template != template:
        raise ConfigError(f"{adapter} was trained with another template. Leave 'template' out: the adapter brings its.")
    try:
        check_needs(template, config.candidates, config.embeddings)
    except ValueError as error:
        raise ConfigError(f"{adapter} was trained with template {template.name}: {error}.") from None
    return config.model_copy(update={"template": template})


def _counted(config: PlanConfig, data: Dataset) -> tuple[Work, Any]:
    """What there is to compute, and the tokens of each training example."""
    import numpy as np

    from seqrec_prompt.data.lists import Candidates
    from seqrec_prompt.data.splits import latest
    from seqrec_prompt.engines.models import load_tokenizer
    from seqrec_prompt.finetuning.examples import tokens_of, training_examples
    from seqrec_prompt.planning.work import work_of
    from seqrec_prompt.prompting.cases import load_clusters, questions
    from seqrec_prompt.prompting.prompter import compile_template

    clusters = load_clusters(config.template, config.embeddings, data)
    names = clusters.names(data.catalog) if clusters else ()
    prompter = compile_template(
        config.template,
        data.catalog,
        load_tokenizer(config.model, config.revision),
        names,
        data.companions(config.template.companions),
    )
    candidates = Candidates.load(config.candidates, data, "train") if config.candidates else None
    train, test = data.split.train, data.split.test
    train = train.take(train.lengths >= 2)
    train = train if config.latest is None else latest(train, config.latest)
    sizes = np.empty(0, np.int64)
    if len(train):
        examples = training_examples(train, prompter, config.context, config.objective, candidates, clusters)
        sizes = tokens_of(examples, prompter)
    # Rank's test sessions bring candidates of their own: its prompts are as long as in training.
    asked = questions(prompter, test, config.prompt_context, None, clusters) if config.template.name != "Rank" else None
    lengths = sizes if asked is None else np.array([len(asked.prompt(i, prompter)) for i in range(len(asked))])
    return work_of(config, sizes, lengths), sizes


def _probed(config: PlanConfig, data: Dataset, sizes: Any) -> tuple[Trained, Decoded]:
    from seqrec_prompt.data.lists import Candidates
    from seqrec_prompt.engines.models import model_hash
    from seqrec_prompt.planning.probe import probe_decoding, probe_training
    from seqrec_prompt.recommenders.llm.variants import check_variant, template_of

    llm = config.llm()
    template, _ = template_of(llm, model_hash(config.model, config.revision))
    check_variant(llm, template, config.candidates if template.name == "Rank" else None)
    # Rank's candidates are of the train sessions: it is tried on those, without their last item.
    part: Literal["train", "test"] = "train" if template.name == "Rank" else "test"
    candidates = Candidates.load(config.candidates, data, part) if part == "train" and config.candidates else None
    decoded = probe_decoding(
        llm, data.split.cases(part).prompts, data, template, config.probe_sessions, config.k, candidates
    )
    return probe_training(config.finetune(), data, config.probe_steps, sizes), decoded


def _training_by_probe(work: Work, trained: Trained) -> Need:
    seconds = trained.start + work.tokens * trained.rate
    formula = (
        f"seconds = start + tokens · seconds a token = {trained.start:.1f} + {work.tokens:,.0f} · {trained.rate:.3g}"
    )
    return Need(
        seconds, trained.bytes,
        (f"{formula} = {seconds:.0f}", f"measured: {trained.steps} steps here; bytes: the longest batch"),
    )  # fmt: skip


def _decoding_by_probe(work: Work, decoded: Decoded) -> Need:
    read = work.sessions * (work.prompt_tokens + decoded.tree_tokens)
    seconds = decoded.start + read * decoded.rate
    formula = (
        f"seconds = start + sessions · (prompt + titles) · seconds a token = {decoded.start:.1f} + {work.sessions:,} · "
        f"({work.prompt_tokens:.0f} + {decoded.tree_tokens:.0f}) · {decoded.rate:.3g} = {seconds:.0f}"
    )
    return Need(seconds, decoded.bytes, (formula, f"measured: {decoded.sessions} sessions here"))


def _told(config: PlanConfig) -> list[str]:
    """Where titles and rounds are from."""
    own = {"rounds", "tree_tokens"} <= config.model_fields_set
    source = "as given" if own else "where not given measured on Amazon Beauty, assumed for yours"
    return [f"titles {config.titles:g}, rounds {config.rounds:g}: {source}"]


def _training(config: PlanConfig, shape: Shape, work: Work, device: Device, *, half: bool) -> Need:
    from seqrec_prompt.finetuning.estimate import training_bytes, training_flops

    again = config.gradient_checkpointing
    operations = training_flops(shape, work.tokens, config.method, checkpointing=again)
    seconds = operations / (device.operations.value * device.training_share.value)
    held = device.libraries + training_bytes(
        shape, config.batch_size, work.longest, config.lora.r, half=half, method=config.method, checkpointing=again,
        whole_vocabulary=config.objective != "catalog",
    )  # fmt: skip
    a_token = training_flops(shape, 1, config.method, checkpointing=again) / shape.parameters
    return Need(
        seconds, held,
        (
            f"seconds = {a_token:g} · parameters · tokens / (operations · share) = {a_token:g} · "
            f"{shape.parameters:,} · {work.tokens:,.0f} / ({device.operations} · {device.training_share}) = "
            f"{seconds:.0f}",
            f"bytes = weights + adapter + activations of the longest batch{device.told_libraries}, see training_bytes",
        ),
    )  # fmt: skip


def _decoding(config: PlanConfig, shape: Shape, work: Work, device: Device, *, half: bool) -> Need:
    width = 2 if half else 4
    titles = config.titles
    tokens = work.sessions * (work.prompt_tokens + titles)
    computing = 2 * shape.parameters * tokens / (device.operations.value * device.decoding_share.value)
    batches = -(-work.sessions // config.sessions_at_once)
    reading = batches * (1 + config.rounds) * shape.parameters * width / device.bandwidth.value
    held = (
        device.libraries
        + shape.parameters * width
        + (config.sessions_at_once * (work.longest_prompt + titles) * 2 * shape.layers * shape.hidden * width)
    )
    seconds = computing + reading
    return Need(
        seconds, held,
        (
            "seconds = 2 · parameters · sessions · (prompt + titles) / (operations · share) + batches · rounds · bytes "
            f"of the weights / bandwidth = 2 · {shape.parameters:,} · {work.sessions:,} · ({work.prompt_tokens:.0f} + "
            f"{titles:g}) / ({device.operations} · {device.decoding_share}) + {batches:,} · {1 + config.rounds:g} · "
            f"{shape.parameters * width:,} / {device.bandwidth} = {seconds:.0f}",
            f"bytes = weights + keys and values of a batch, every head with its own{device.told_libraries}",
            *_told(config),
        ),
    )  # fmt: skip
