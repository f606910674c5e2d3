"""`hosted generate`: what a hosted model answers to sessions, as the table that `ground` and `distill` read.

Decoding cannot be constrained at a hosted service: the model is asked n times, and its answers, best first, are
grounded in the catalog afterwards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from seqrec_prompt.artifacts import atomic_file, is_done, manifest, read_manifest
from seqrec_prompt.engines.pricing import MILLION, HostedConfig, Quote, approve, quote
from seqrec_prompt.errors import ConfigError, HostedError
from seqrec_prompt.finetuning.chat import fitting, require_question
from seqrec_prompt.journal import Journal
from seqrec_prompt.locks import lock
from seqrec_prompt.prompting.templates import TemplateConfig

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.answers import Request
    from seqrec_prompt.engines.openai import Service

STAGE = "hosted generate"
SHOWN = 3  # problems told at once
# How the answers come, not what they are.
PASSING = ("by", "at_once", "requests_per_minute", "tokens_per_minute", "allow_missing", "tuned")


class HostedGenerateConfig(HostedConfig):
    """Settings of `hosted generate`."""

    data: Path = Field(description="directory made by 'prepare'")
    out: Path = Field(description="Parquet file to write: session_id, text, logprob, times")
    model: str | None = Field(None, description="the service's name of the model")
    tuned: Path | None = Field(
        None, description="instead of 'model', directory made by 'hosted finetune': its model, with its template"
    )
    part: Literal["test", "train"] = Field(
        "test", description="sessions to continue; 'train': without their last item, for 'distill'"
    )
    max_sessions: int | None = Field(None, ge=1, description="only the first so many sessions")
    n: int = Field(1, ge=1, le=128, description="answers a session; the prompt is billed once")
    temperature: float = Field(1, ge=0, le=2, description="of sampling; at 0 all answers are mostly the same")
    max_tokens: int = Field(64, ge=1, description="of one answer; the quote counts them all")
    logprobs: bool = Field(True, description="ask how probable each answer is, to order them by; some models refuse")
    seed: int = Field(0, ge=0, description="of sampling, where the service heeds it")
    by: Literal["batch", "requests"] = Field(
        "batch", description="'batch': the Batch API, within a day, at its lower price; 'requests': one by one, at once"
    )
    at_once: int = Field(8, ge=1, le=256, description="requests under way together")
    requests_per_minute: float | None = Field(None, gt=0, description="the account's limit, if it has one")
    tokens_per_minute: float | None = Field(None, gt=0, description="the account's limit, if it has one")
    context: int = Field(16_385, ge=16, description="longest prompt with its answer, in tokens; older items go first")
    allow_missing: bool = Field(False, description="write the file although some sessions got no answer")
    overwrite: bool = Field(False, description="pay again for answers that are there, of these settings or others")
    template: TemplateConfig | None = Field(None, description="prompt; with 'tuned', the one it was trained with")

    @field_validator("template", mode="before")
    @classmethod
    def _ask(cls, template: Any) -> Any:
        return {"layout": "ask"} | template if isinstance(template, dict) else template

    @model_validator(mode="after")
    def _one_model(self) -> HostedGenerateConfig:
        if (self.model is None) == (self.tuned is None):
            raise ValueError("give either 'model', a name, or 'tuned', a directory made by 'hosted finetune'")
        if self.template is not None:
            require_question(self.template)
        return self

    def identity(self) -> dict[str, Any]:
        """Without how the answers come."""
        return {name: value for name, value in super().identity().items() if name not in PASSING}


def generate(config: HostedGenerateConfig) -> Path:
    """Ask a hosted model about every session of a part; returns the Parquet file of its answers.

    Answers go into a journal beside it as they come; the next run sends only what is missing. Raises CostError when
    the quote may not be spent, HostedError when the service refuses or answers are missing at the end.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.answers import answered, collect_batches
    from seqrec_prompt.engines.openai import Pace, Service
    from seqrec_prompt.recommenders.files import read_file_manifest

    data = Dataset.load(config.data)
    model, template = _model(config)
    settings = config.identity() | {"model": model, "template": template.resolved()}
    wanted = manifest(STAGE, settings, {"data": data.hash})
    found = read_file_manifest(config.out)
    done = is_done(config.out, found, wanted, overwrite=config.overwrite)
    if done and (config.allow_missing or not found["facts"]["missing"]):  # type: ignore[index]
        print(f"already generated: {config.out}")
        return config.out
    requests = _requests(config, data, model, template)
    with lock(config.out):
        journal = Journal(config.out.with_name(config.out.name + ".journal"), wanted, overwrite=config.overwrite)
        missing: list[Request] = []
        try:
            service = Service(config, Pace(config.requests_per_minute, config.tokens_per_minute))
            problems = collect_batches(service, journal)  # what is paid for comes first
            if missing := _missing(requests, journal):
                offer = _quote(config, model, missing, len(requests))
                problems = _ask(config, service, journal, wanted, missing, offer)
            missing = _missing(requests, journal)
            if missing and not config.allow_missing:
                raise HostedError(_what_is_missing(missing, requests, problems))
            facts = _facts(journal, requests)
            _write(config.out, data, config, answered(journal), wanted | {"facts": facts})
        finally:
            journal.close(remove=not journal.count)
        journal.close(remove=not missing)
    cost = f"${facts['cost']:.4f}" if facts["cost"] is not None else "unknown"
    print(f"answers: {config.out}  ({facts['answered']:,} of {len(requests):,} sessions, cost {cost})")
    if facts["answers"] < config.n * facts["answered"]:
        print(f"note: the service gave {facts['answers']:,} answers, not the {config.n} a session that were asked for")
    step = "distill" if config.part == "train" else "ground"
    print(f"next: seqrec-prompt {step} --data {config.data} --answers {config.out} --out …")
    return config.out


def _ask(
    config: HostedGenerateConfig,
    service: Service,
    journal: Journal,
    wanted: dict[str, Any],
    missing: list[Request],
    offer: Quote,
) -> list[str]:
    """Pay for what is missing, once that is agreed to; returns what went wrong."""
    from seqrec_prompt.engines.answers import ask_all, collect_batches, send_batches

    approve(offer, config)
    journal.append({"quote": offer.facts()})
    if config.by == "requests":
        return ask_all(service, journal, missing, config.at_once)
    send_batches(service, journal, missing, wanted, fresh=config.overwrite)
    return collect_batches(service, journal)


def _model(config: HostedGenerateConfig) -> tuple[str, TemplateConfig]:
    if config.tuned is None:
        return str(config.model), config.template or TemplateConfig(layout="ask")
    made = read_manifest(config.tuned, "hosted finetune")
    template = TemplateConfig.model_validate(made["config"]["template"])
    if config.template not in (None, template):
        raise ConfigError(f"{config.tuned} was trained with another template. Leave the template out of this config.")
    return str(made["facts"]["fine_tuned_model"]), template


def _requests(config: HostedGenerateConfig, data: Dataset, model: str, template: TemplateConfig) -> list[Request]:
    from seqrec_prompt.engines.answers import Request
    from seqrec_prompt.engines.tokens import token_counter

    counter = token_counter(model, config.encoding)
    lines = data.catalog.texts(template.attributes)
    prompts = data.split.cases(config.part).prompts.last(template.max_items)
    common: dict[str, Any] = {"model": model, "n": config.n, "temperature": config.temperature, "seed": config.seed}
    common["max_completion_tokens"] = config.max_tokens
    if config.logprobs:
        common["logprobs"] = True
    requests = []
    for position in range(min(len(prompts), config.max_sessions or len(prompts))):
        shown = [lines[item] for item in prompts[position].tolist()]
        chat = fitting(shown, template, counter, config.context - config.max_tokens, [])
        body = common | {"messages": chat}
        requests.append(Request(f"{config.part}-{position}", body, counter.chat(chat), config.n * config.max_tokens))
    return requests


def _missing(requests: list[Request], journal: Journal) -> list[Request]:
    from seqrec_prompt.engines.answers import answered

    done = answered(journal)
    return [one for one in requests if one.custom_id not in done]


def _quote(config: HostedGenerateConfig, model: str, missing: list[Request], total: int) -> Quote:
    if len(missing) < total:
        print(f"going on: {total - len(missing):,}/{total:,} sessions are answered")
    print(f"prompts: {len(missing):,}; the output is counted as if every answer took all of --max-tokens")
    tokens = {"input": sum(one.tokens for one in missing), "output": sum(one.most for one in missing)}
    # Answers end where they end: the output is a bound, whatever counts the input.
    return quote(config, model, tokens, exact=False, batch=config.by == "batch")


def _facts(journal: Journal, requests: list[Request]) -> dict[str, Any]:
    """What was answered, the tokens that the service says it took, and their price."""
    from seqrec_prompt.engines.answers import answered

    done = answered(journal)
    usage = {kind: [row["usage"][kind] for row in done.values()] for kind in ("input", "output")}
    known = all(count is not None for counts in usage.values() for count in counts)
    cost = 0.0
    price: dict[str, float] = {}
    for record in journal.records():  # each answer at the price of the quote before it
        price = record.get("quote", {}).get("price", price)
        if "answer" in record and known:
            cost += sum(price[kind] * count for kind, count in record["usage"].items()) / MILLION
    return {
        "sessions": len(requests),
        "answered": len(done),
        "missing": len(requests) - len(done),
        "answers": sum(len(row["choices"]) for row in done.values()),
        "tokens": {kind: sum(counts) for kind, counts in usage.items()} if known else None,
        "cost": cost if known else None,
        "quotes": [record["quote"] for record in journal.records() if "quote" in record],
    }


def _what_is_missing(missing: list[Request], requests: list[Request], problems: list[str]) -> str:
    more = [f"… and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
    return "\n  ".join(
        [
            f"{len(missing):,} of {len(requests):,} sessions have no answer; the others are kept.",
            *problems[:SHOWN],
            *more,
            "Run the same command again: only the missing ones are quoted and sent. (An answer that came but cannot be "
            "read, or that was waited for too long, may have been billed.) Or leave them out with --allow-missing.",
        ]
    )


def _write(
    path: Path, data: Dataset, config: HostedGenerateConfig, answers: dict[str, Any], made: dict[str, Any]
) -> None:
    """One row an answer, best first in each session: by log-probability where all have one, else by how often."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from seqrec_prompt.data.lists import METADATA_KEY

    ids = data.split.cases(config.part).prompts.ids
    rows: list[tuple[str, str, float | None, int]] = []
    for position in range(len(ids)):
        if (record := answers.get(f"{config.part}-{position}")) is not None:
            rows += [(ids[position], *answer) for answer in _ranked(record["choices"])]
    schema = pa.schema(
        [("session_id", pa.string()), ("text", pa.string()), ("logprob", pa.float64()), ("times", pa.int32())],
        metadata={METADATA_KEY: json.dumps(made, ensure_ascii=False).encode()},
    )
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
    with atomic_file(path) as partial:
        pq.write_table(table, partial)


def _ranked(choices: list[tuple[str, float | None]]) -> list[tuple[str, float | None, int]]:
    """Equal answers made one, (text, log-probability, times), best first."""
    found: dict[str, tuple[float | None, int]] = {}
    for text, logprob in choices:
        best, times = found.get(text.strip(), (None, 0))
        if logprob is not None and (best is None or logprob > best):
            best = logprob
        found[text.strip()] = (best, times + 1)
    told = all(logprob is not None for _, logprob in choices)
    order = sorted(found, key=lambda text: found[text] if told else (0, found[text][1]), reverse=True)
    return [(text, *found[text]) for text in order]
