"""`hosted finetune` and `hosted attach`: fine-tune a model at a hosted service, paying for it once.

Every step goes into a journal beside the output: the quote that was agreed to, the uploaded file, the run key before
anything is created under it, the job. A stopped run goes on from there, and so does `attach`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from seqrec_prompt.artifacts import (
    MANIFEST,
    Journal,
    hash_file,
    is_done,
    manifest,
    peek_journal,
    peek_manifest,
    refuse_inputs_inside,
    staged_directory,
    write_json,
    write_text,
)
from seqrec_prompt.engines.pricing import MILLION, HostedConfig, Quote, ServiceConfig, approve, quote
from seqrec_prompt.errors import ArtifactError, HostedError
from seqrec_prompt.prompting.templates import TemplateConfig

if TYPE_CHECKING:
    from seqrec_prompt.engines.openai import Service
    from seqrec_prompt.finetuning.chat import TrainingFile

STAGE = "hosted finetune"
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class HostedFinetuneConfig(HostedConfig):
    """Settings of `hosted finetune`."""

    data: Path | None = Field(
        None, description="directory made by 'prepare': the last item of each train session is learned"
    )
    pairs: Path | None = Field(
        None, description="instead of 'data', JSON lines made by 'pairs', or chats with 'messages' of your own"
    )
    model: str = Field(description="the service's name of the model to tune")
    out: Path = Field(description="directory for what becomes of the job; the training file is written beside it")
    epochs: int = Field(3, ge=1, description="passes over the training file; each is billed")
    batch_size: int | None = Field(None, ge=1, description="examples a step; by default the service's choice")
    learning_rate_multiplier: float | None = Field(None, gt=0, description="by default the service's choice")
    suffix: str | None = Field(None, max_length=64, description="goes into the name of the tuned model")
    seed: int = Field(0, ge=0, description="of the job")
    context: int = Field(16_385, ge=16, description="longest example in tokens; older items of a session go first")
    quote_only: bool = Field(False, description="write the training file and the quote, and send nothing")
    wait: bool = Field(True, description="wait for the job's end; else come back with 'hosted attach'")
    overwrite: bool = Field(False, description="pay for another job although there is one, of these settings or others")
    template: TemplateConfig = TemplateConfig(layout="ask")

    @field_validator("template", mode="before")
    @classmethod
    def _ask(cls, template: Any) -> Any:
        return {"layout": "ask"} | template if isinstance(template, dict) else template

    @model_validator(mode="after")
    def _one_source(self) -> HostedFinetuneConfig:
        if (self.data is None) == (self.pairs is None):
            raise ValueError("give either 'data' or 'pairs': a directory made by 'prepare', or a file of pairs")
        if self.data is not None and self.template.layout != "ask":
            raise ValueError("a hosted model needs template.layout 'ask': a session in one message, then the answer")
        return self

    def identity(self) -> dict[str, Any]:
        """Without what changes no model."""
        return {name: value for name, value in super().identity().items() if name not in ("quote_only", "wait")}


class AttachConfig(ServiceConfig):
    """Settings of `hosted attach`."""

    job: str = Field(description="the job's name at the service, e.g. ftjob-abc123")
    out: Path | None = Field(
        None, description="the output of the 'hosted finetune' that created it, to be finished; else it is only watched"
    )
    cancel: bool = Field(False, description="cancel the job first; what it has used may be billed")


def finetune(config: HostedFinetuneConfig) -> Path:
    """Write and check the training file, quote, ask, upload, create one job, wait, record; returns the directory.

    Raises DataError for rows that break the service's rules, CostError when the quote may not be spent, HostedError
    when the service refuses or the job fails.
    """
    from seqrec_prompt.engines.jobs import alone

    refuse_inputs_inside(config.out, {"data": config.data, "pairs": config.pairs})
    file, wanted = _write_training_file(config)
    if is_done(config.out, peek_manifest(config.out), wanted, overwrite=config.overwrite):
        print(f"already tuned: {config.out}  (model {peek_manifest(config.out)['facts']['fine_tuned_model']})")  # type: ignore[index]
        return config.out
    if config.quote_only:
        print(_quote(config, file))
        print(f"training file: {_beside(config.out, '.jsonl')}; nothing was sent")
        return config.out
    with alone(_beside(config.out, ".lock")):
        journal = Journal(_beside(config.out, ".journal"), wanted, overwrite=config.overwrite)
        try:
            _create(config, file, wanted, journal)
            if config.wait:
                return _finish(_service(config), config.out, wanted, journal)
            print(_how_to_come_back(_state(journal)["job"], config.out))
        finally:
            journal.close(remove=not journal.count)
    return config.out


def attach(config: AttachConfig) -> Path | None:
    """Wait for a job that runs already; with `out`, finish what `hosted finetune` began there. Creates nothing."""
    from seqrec_prompt.engines.jobs import alone

    if config.out is None:
        service = _service(config)
        job = _cancelled(service, config.job) if config.cancel else _watch(service, config.job, None)
        if job["status"] != "cancelled" or not config.cancel:
            _require_success(job, None)
            print(f"{config.job}: model {job['fine_tuned_model']}, {job['trained_tokens'] or 0:,} tokens trained")
        return None
    place = _beside(config.out, ".journal")
    header = peek_journal(place)
    if header is None:
        done = peek_manifest(config.out)
        if done and done.get("facts", {}).get("job") == config.job:
            print(f"already tuned: {config.out}  (model {done['facts']['fine_tuned_model']})")
            return config.out
        raise ArtifactError(f"{place}: no run waits here. Leave --out away to watch {config.job} alone.")
    with alone(_beside(config.out, ".lock")):
        journal = Journal(place, header)
        try:
            state = _state(journal)
            if state.get("job") not in (None, config.job):
                raise ArtifactError(f"{place} holds the run of {state['job']}, not of {config.job}.")
            address = {n: value for n, value in state.get("service", {}).items() if n not in config.model_fields_set}
            service = _service(config.model_copy(update=address))
            if "job" not in state:
                _require_own(service.job(config.job), state, place)
                journal.append({"job": config.job})
            if config.cancel:
                journal.append({"status": _cancelled(service, config.job)["status"]})
                return config.out
            return _finish(service, config.out, header, journal)
        finally:
            journal.close()


def _write_training_file(config: HostedFinetuneConfig) -> tuple[TrainingFile, dict[str, Any]]:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.tokens import token_counter
    from seqrec_prompt.finetuning.chat import chats_of, session_chats, training_file

    counter = token_counter(config.model, config.encoding)
    inputs = {}
    if config.data is not None:
        data = Dataset.load(config.data)
        rows: Iterator[Any] = session_chats(data, data.split.cases("train"), config.template, counter, config.context)
        inputs["data"] = data.hash
    else:
        rows = chats_of(config.pairs)  # type: ignore[arg-type]  # one of both is given
    file = training_file(rows, counter, config.context, str(config.data or config.pairs))
    inputs["training_file"] = hashlib.sha256(file.content).hexdigest()
    if config.pairs is not None:
        inputs["pairs"] = hash_file(config.pairs)
    write_text(_beside(config.out, ".jsonl"), file.content.decode())
    return file, manifest(STAGE, config.identity(), inputs)


def _quote(config: HostedFinetuneConfig, file: TrainingFile) -> Quote:
    print(f"{file.examples:,} examples, {file.tokens:,} tokens, the longest {file.longest:,}; {config.epochs} epochs")
    return quote(config, config.model, {"training": file.tokens * config.epochs}, exact=file.exact)


def _create(config: HostedFinetuneConfig, file: TrainingFile, wanted: dict[str, Any], journal: Journal) -> None:
    """Bring the journal to the point where it names the job."""
    from seqrec_prompt.engines.jobs import create_once, run_key

    state = _state(journal)
    again = config.overwrite and state.get("status") in ("failed", "cancelled")
    if "job" in state and not again:
        print(f"going on with {state['job']}")
        return
    service = _service(config)
    key = state.get("key")
    if key is None or again:
        offer = _quote(config, file)
        approve(offer, config)
        places = ("out", "overwrite", *wanted["inputs"])
        settings = {name: value for name, value in wanted["config"].items() if name not in places}
        key = run_key([settings, wanted["inputs"]], fresh=config.overwrite)
        address = {"base_url": config.base_url, "key_variable": config.key_variable}
        journal.append({"key": key, "quote": offer.facts(), "service": address})
        state = _state(journal)
    if "file" not in state:
        name = f"seqrec-prompt-{key}.jsonl"
        journal.append({"file": service.upload(name, file.content, "fine-tune")})
    hyperparameters = {
        "n_epochs": config.epochs,
        "batch_size": config.batch_size,
        "learning_rate_multiplier": config.learning_rate_multiplier,
    }
    given = {name: value for name, value in hyperparameters.items() if value is not None}
    file_id = _state(journal)["file"]
    body: dict[str, Any] = {
        "model": config.model,
        "training_file": file_id,
        "method": {"type": "supervised", "supervised": {"hyperparameters": given}},
        "seed": config.seed,
    }
    if config.suffix is not None:
        body["suffix"] = config.suffix
    job = create_once(
        lambda: service.create_job(key, body),
        lambda: service.find_job(key, file_id),
        journal,
        key,
        what="creating the fine-tuning job",
    )
    journal.append({"job": job["id"]})
    print(f"job: {job['id']}")


def _finish(service: Service, out: Path, wanted: dict[str, Any], journal: Journal) -> Path:
    """Wait for the job of the journal and write what became of it."""
    state = _state(journal)
    name = state["job"]
    job = _watch(service, name, out)
    journal.append({"status": job["status"]})
    _require_success(job, out)
    price = (state.get("quote") or {}).get("price", {}).get("training")
    tokens = job["trained_tokens"]
    facts = {
        "job": name,
        "run_key": state.get("key"),
        "fine_tuned_model": job["fine_tuned_model"],
        "trained_tokens": tokens,
        "quote": state.get("quote"),
        "cost": None if price is None or tokens is None else price * tokens / MILLION,
        "hyperparameters": (job.get("method") or {}).get("supervised", {}).get("hyperparameters"),
        "seconds": (job["finished_at"] or 0) - job["created_at"],
    }
    with staged_directory(out) as staged:
        events = service.events(name)
        write_text(staged / "events.jsonl", "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events))
        for number, result in enumerate(job["result_files"]):
            (staged / f"metrics{number or ''}.csv").write_bytes(_csv(service.download(result)))
        write_json(staged / MANIFEST, wanted | {"facts": facts})
    journal.close(remove=True)
    cost = "unknown" if facts["cost"] is None else f"${facts['cost']:.4f}"
    print(f"tuned: {facts['fine_tuned_model']}  ({tokens or 0:,} tokens, cost {cost}; {out})")
    return out


def _watch(service: Service, name: str, out: Path | None) -> dict[str, Any]:
    from seqrec_prompt.engines.jobs import watch

    started = time.monotonic()

    def describe(job: dict[str, Any]) -> str:
        last = "" if job["status"] in ENDED else service.last_event(name)
        minutes = int((time.monotonic() - started) / 60)
        waited = f", waited {minutes} min" if minutes else ""
        return f"{name}: {job['status']}{waited}{'; ' + last if last else ''}"

    try:
        return watch(lambda: service.job(name), ENDED, describe)
    except KeyboardInterrupt:
        print(_how_to_come_back(name, out))
        raise
    except HostedError as error:
        raise HostedError(f"{error}\n{_how_to_come_back(name, out)}", error.status) from None


def _how_to_come_back(name: str, out: Path | None) -> str:
    place = f" --out {out}" if out is not None else ""
    return (
        f"{name} goes on running at the service, and being billed. Come back with:\n"
        f"  seqrec-prompt hosted attach {name}{place}\n"
        f"or stop it with: seqrec-prompt hosted attach {name}{place} --cancel"
    )


def _require_success(job: dict[str, Any], out: Path | None) -> None:
    if job["status"] == "succeeded":
        return
    error = job.get("error") or {}
    said = ": ".join(str(part) for part in (error.get("code"), error.get("message")) if part) or "no reason was given"
    again = "run 'hosted finetune' again with --overwrite, which quotes and pays for a new job"
    step = (
        f"The service says: {said}. Correct that, then {again}."
        if job["status"] == "failed"
        else f"To begin anew, {again}."
    )
    raise HostedError(f"{job['id']} is {job['status']}. {step}")


def _require_own(job: dict[str, Any], state: dict[str, Any], place: Path) -> None:
    """Raise ArtifactError unless the job was created by the run of the journal."""
    from seqrec_prompt.engines.openai import KEY

    if (job.get("metadata") or {}).get(KEY) != state.get("key") and job["training_file"] != state.get("file"):
        raise ArtifactError(
            f"{place} holds another run than that of {job['id']}: it lacks the run key {state.get('key')}."
        )


def _cancelled(service: Service, name: str) -> dict[str, Any]:
    job: dict[str, Any] = service.cancel_job(name)
    print(f"{name}: {job['status']}")
    return job


def _state(journal: Journal) -> dict[str, Any]:
    """What is known of the latest job: its key, quote, file, name and status."""
    state: dict[str, Any] = {}
    for record in journal.records():
        state = dict(record) if "key" in record else state | record
    return state


def _csv(content: bytes) -> bytes:
    """Metrics as CSV; some services send them as base64."""
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        return content


def _service(config: ServiceConfig) -> Service:
    from seqrec_prompt.engines.openai import Service

    return Service(config)


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)
