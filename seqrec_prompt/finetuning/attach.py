"""`hosted attach`: wait for a job that runs at a hosted service, and write what became of it."""

from __future__ import annotations

import base64
import binascii
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from seqrec_prompt.artifacts import (
    MANIFEST,
    peek_manifest,
    staged_directory,
    write_json,
    write_text,
)
from seqrec_prompt.engines.pricing import MILLION, ServiceConfig
from seqrec_prompt.errors import ArtifactError, HostedError
from seqrec_prompt.journal import Journal, peek_journal
from seqrec_prompt.locks import lock

if TYPE_CHECKING:
    from seqrec_prompt.engines.openai import Service

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class AttachConfig(ServiceConfig):
    """Settings of `hosted attach`."""

    job: str = Field(description="the job's name at the service, e.g. ftjob-abc123")
    out: Path | None = Field(
        None, description="the output of the 'hosted finetune' that created it, to be finished; else it is only watched"
    )
    cancel: bool = Field(False, description="cancel the job first; what it has used may be billed")


def attach(config: AttachConfig) -> Path | None:
    """Wait for a job that runs already; with `out`, finish what `hosted finetune` began there. Creates nothing."""
    from seqrec_prompt.engines.openai import Service

    if config.out is None:
        service = Service(config)
        job = _cancelled(service, config.job) if config.cancel else _watch(service, config.job, None)
        if job["status"] != "cancelled" or not config.cancel:
            _require_success(job)
            print(f"{config.job}: model {job['fine_tuned_model']}, {job['trained_tokens'] or 0:,} tokens trained")
        return None
    place = beside(config.out, ".journal")
    header = peek_journal(place)
    if header is None:
        done = peek_manifest(config.out)
        if done and done.get("facts", {}).get("job") == config.job:
            print(f"already tuned: {config.out}  (model {done['facts']['fine_tuned_model']})")
            return config.out
        raise ArtifactError(f"{place}: no run waits here. Leave --out away to watch {config.job} alone.")
    with lock(config.out):
        journal = Journal(place, header)
        try:
            state = state_of(journal)
            if state.get("job") not in (None, config.job):
                raise ArtifactError(f"{place} holds the run of {state['job']}, not of {config.job}.")
            address = {n: value for n, value in state.get("service", {}).items() if n not in config.model_fields_set}
            service = Service(config.model_copy(update=address))
            if "job" not in state:
                _require_own(service.job(config.job), state, place)
                journal.append({"job": config.job})
            if config.cancel:
                journal.append({"status": _cancelled(service, config.job)["status"]})
                return config.out
            return finish(service, config.out, header, journal)
        finally:
            journal.close()


def finish(service: Service, out: Path, wanted: dict[str, Any], journal: Journal) -> Path:
    """Wait for the job of the journal and write what became of it."""
    state = state_of(journal)
    name = state["job"]
    job = _watch(service, name, out)
    journal.append({"status": job["status"]})
    _require_success(job)
    price = (state.get("quote") or {}).get("price", {}).get("training")
    tokens = job["trained_tokens"]
    facts = {
        "job": name,
        "run_key": state.get("key"),
        "fine_tuned_model": job["fine_tuned_model"],
        "trained_tokens": tokens,
        "quote": state.get("quote"),
        "cost": None if price is None or tokens is None else price * tokens / MILLION,
        "hyperparameters": ((job.get("method") or {}).get("supervised") or {}).get("hyperparameters"),
        "created_at": job["created_at"],
        "finished_at": job["finished_at"],
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
        print(how_to_come_back(name, out))
        raise
    except HostedError as error:
        raise HostedError(f"{error}\n{how_to_come_back(name, out)}", error.status) from None


def how_to_come_back(name: str, out: Path | None) -> str:
    """What to type to come back to a job, or to stop it."""
    place = f" --out {out}" if out is not None else ""
    return (
        f"{name} goes on running at the service, and being billed. Come back with:\n"
        f"  seqrec-prompt hosted attach {name}{place}\n"
        f"or stop it with: seqrec-prompt hosted attach {name}{place} --cancel"
    )


def _require_success(job: dict[str, Any]) -> None:
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


def state_of(journal: Journal) -> dict[str, Any]:
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


def beside(out: Path, ending: str) -> Path:
    """The file beside the output that ends so."""
    return out.with_name(out.name + ending)
