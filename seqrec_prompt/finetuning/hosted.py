"""`hosted finetune`: fine-tune a model at a hosted service, paying for it once.

Every step goes into a journal beside the output: the quote that was agreed to, the uploaded file, the run key before
anything is created under it, the job. A stopped run goes on from there, and so does `attach`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from seqrec_prompt.artifacts import (
    hash_file,
    is_done,
    manifest,
    peek_manifest,
    refuse_inputs_inside,
    write_text,
)
from seqrec_prompt.engines.pricing import HostedConfig, Quote, approve, quote
from seqrec_prompt.finetuning.attach import beside, finish, how_to_come_back, state_of
from seqrec_prompt.finetuning.chat import chats_of, require_question, session_chats, training_file
from seqrec_prompt.journal import Journal
from seqrec_prompt.locks import lock
from seqrec_prompt.prompting.templates import TemplateConfig

if TYPE_CHECKING:
    from seqrec_prompt.finetuning.chat import TrainingFile

STAGE = "hosted finetune"


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
        if self.data is not None:
            require_question(self.template)
        return self

    def identity(self) -> dict[str, Any]:
        """Without what changes no model."""
        return {name: value for name, value in super().identity().items() if name not in ("quote_only", "wait")}


def finetune(config: HostedFinetuneConfig) -> Path:
    """Write and check the training file, quote, ask, upload, create one job, wait, record; returns the directory.

    Raises DataError for rows that break the service's rules, CostError when the quote may not be spent, HostedError
    when the service refuses or the job fails.
    """
    from seqrec_prompt.engines.openai import Service

    refuse_inputs_inside(config.out, {"data": config.data, "pairs": config.pairs})
    file, wanted = _training_file(config)
    found = peek_manifest(config.out)
    if is_done(config.out, found, wanted, overwrite=config.overwrite):
        print(f"already tuned: {config.out}  (model {found['facts']['fine_tuned_model']})")  # type: ignore[index]
        return config.out
    with lock(config.out):
        journal = Journal(beside(config.out, ".journal"), wanted, overwrite=config.overwrite)
        try:
            write_text(beside(config.out, ".jsonl"), file.content.decode())
            if config.quote_only:
                print(f"{_quote(config, file)}\ntraining file: {beside(config.out, '.jsonl')}; nothing was sent")
                return config.out
            _create(config, file, wanted, journal)
            if config.wait:
                return finish(Service(config), config.out, wanted, journal)
            print(how_to_come_back(state_of(journal)["job"], config.out))
        finally:
            journal.close(remove=not journal.count)
    return config.out


def _training_file(config: HostedFinetuneConfig) -> tuple[TrainingFile, dict[str, Any]]:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.tokens import token_counter

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
    return file, manifest(STAGE, config.identity(), inputs)


def _quote(config: HostedFinetuneConfig, file: TrainingFile) -> Quote:
    print(f"{file.examples:,} examples, {file.tokens:,} tokens, the longest {file.longest:,}; {config.epochs} epochs")
    return quote(config, config.model, {"training": file.tokens * config.epochs}, exact=file.exact)


def _create(config: HostedFinetuneConfig, file: TrainingFile, wanted: dict[str, Any], journal: Journal) -> None:
    """Bring the journal to the point where it names the job."""
    from seqrec_prompt.engines.jobs import create_once, run_key
    from seqrec_prompt.engines.openai import Service

    state = state_of(journal)
    again = config.overwrite and state.get("status") in ("failed", "cancelled")
    if "job" in state and not again:
        print(f"going on with {state['job']}")
        return
    service = Service(config)
    key = state.get("key")
    if key is None or again:
        offer = _quote(config, file)
        approve(offer, config)
        key = run_key(wanted, fresh=config.overwrite)
        address = {"base_url": config.base_url, "key_variable": config.key_variable}
        journal.append({"key": key, "quote": offer.facts(), "service": address})
        state = state_of(journal)
    if "file" not in state:
        name = f"seqrec-prompt-{key}.jsonl"
        journal.append({"file": service.upload(name, file.content, "fine-tune")})
    hyperparameters = {
        "n_epochs": config.epochs,
        "batch_size": config.batch_size,
        "learning_rate_multiplier": config.learning_rate_multiplier,
    }
    given = {name: value for name, value in hyperparameters.items() if value is not None}
    file_id = state_of(journal)["file"]
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
