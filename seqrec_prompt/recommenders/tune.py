"""`seqrec-prompt tune`: search the settings of a recommender that `fit` knows, by validation alone.

OUT/study.db is an optuna study in SQLite, to be looked at with optuna's own tools; best.yaml the best settings, for
`fit --config`; trials.csv every trial. The test part of the data is never read.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from seqrec_prompt.artifacts import MANIFEST, is_done, manifest, peek_manifest, same, write_json, write_text
from seqrec_prompt.config import Config, load
from seqrec_prompt.errors import ConfigError, DataError, MissingExtraError, SeqrecError
from seqrec_prompt.locks import locked
from seqrec_prompt.recommenders.fit import FitConfig, build
from seqrec_prompt.recommenders.settings import Embeddings

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.splits import Fold
    from seqrec_prompt.embeddings.table import EmbeddingTable

SPACES = Path(__file__).with_name("spaces")
STUDY, BEST, TRIALS = "study.db", "best.yaml", "trials.csv"
CUTOFF = 20


class Range(Config):
    """Numbers from `low` to `high`; whole ones when both ends and the step are."""

    low: int | float
    high: int | float
    step: int | float | None = Field(None, gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _can_be_drawn_from(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and (self.step is not None or self.low <= 0):
            raise ValueError("a log range begins above 0 and has no step")
        return self


class Space(Config):
    """What is searched: setting of `fit`, dotted → a value that stays, a list of choices, or a range."""

    recommender: str
    settings: dict[str, Range | list[bool | int | float | str | None] | bool | int | float | str | None] = Field(
        min_length=1
    )


class TuneConfig(Config):
    """Settings of `tune`."""

    data: Path = Field(description="directory made by 'prepare'")
    space: str = Field(
        description="YAML file, or one of the paper's spaces by name: bert4rec, gru4rec, llm-seq-sim, sasrec, sknn, "
        "v-sknn"
    )
    embeddings: Embeddings = Field(None, description="directories made by 'embed' of this catalog, as for 'fit'")
    out: Path = Field(description="directory to write; a search that is there goes on")
    trials: int | None = Field(None, ge=1, description="end after this many trials, earlier runs counted")
    minutes: float | None = Field(None, gt=0, description="begin no trial after these minutes, earlier runs counted")
    without_gain: int | None = Field(100, ge=1, description="end when so many trials brought nothing better")
    random_trials: int = Field(40, ge=1, description="drawn at random before TPE learns from them")
    folds: Literal["forward", "validation"] = Field(
        "forward",
        description="'forward': three folds that go forward over four equal time bins of train; 'validation': the "
        "data's validation part",
    )
    max_validation: int | None = Field(None, ge=1, description="sessions judged a fold at most, drawn with --seed")
    exclude_seen: bool = Field(True, description="leave a session's own items out of the lists")
    seed: int = Field(0, ge=0, lt=2**32, description="draws trials, and the fold of sessions of equal time")
    overwrite: bool = Field(False, description="begin again although the output directory holds another search")

    def identity(self) -> dict[str, Any]:
        """Resolved settings that decide what a trial is; a budget may grow."""
        budget = {"trials", "minutes", "without_gain"}
        return {name: value for name, value in self.resolved().items() if name not in budget}


def read_space(name: str) -> Space:
    """Read a space from a file, or one that comes with the package by its name. Raises ConfigError."""
    file = Path(name) if Path(name).suffix else SPACES / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in SPACES.glob("*.yaml")))
        raise ConfigError(f"'space' = {name}: no such file, and none of {known}")
    try:
        return Space.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2])
        raise ConfigError(f"{file}: '{where}': {first['msg']}") from None


@locked
def tune(config: TuneConfig) -> Path:
    """Search for the settings with the best mean NDCG@20 over the folds; returns the directory.

    A stopped search goes on with the trial it was at, and draws what it would have drawn. Raises ArtifactError when
    `out` holds a search for something else, ConfigError when the space names what `fit` does not know.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", 'pip install "seqrec_prompt[tune]"') from None
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.embeddings.table import load_tables

    data, space = Dataset.load(config.data), read_space(config.space)
    _fit_config(config, space, {name: _first(value) for name, value in space.settings.items()})  # told before any work
    inputs, table = {"data": data.hash}, None
    if config.embeddings:
        table, inputs["embeddings"] = load_tables(config.embeddings, data.catalog)
    wanted = manifest("tune", config.identity() | {"space": space.resolved()}, inputs)
    found = peek_manifest(config.out)
    # The beginning of this very search is not overwritten, but gone on with.
    unfinished = found is not None and same(found, wanted) and not (config.out / BEST).exists()
    if not is_done(config.out, found, wanted, overwrite=config.overwrite and not unfinished):
        config.out.mkdir(parents=True, exist_ok=True)
        for name in (BEST, TRIALS, STUDY):
            (config.out / name).unlink(missing_ok=True)
        write_json(config.out / MANIFEST, wanted)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{(config.out / STUDY).absolute()}",
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(),
    )
    _give_up_broken_off(study)
    if (done := len(_done(study))) and not _is_over(config, study):
        print(f"going on: {done:,}{f'/{config.trials:,}' if config.trials else ''} trials are done")
    folds = _folds(config, data)
    while not _is_over(config, study):
        _one_trial(config, space, study, data, table, folds)
    _write(config, space, study)
    return config.out


def _folds(config: TuneConfig, data: Dataset) -> list[Fold]:
    import numpy as np

    from seqrec_prompt.data.splits import Fold, forward_chaining

    if config.folds == "validation":
        if data.split.validation is None:
            raise DataError([f"{config.data} has no validation part"], "Leave out 'folds', or split it otherwise.")
        folds = [Fold(data.split.train, data.split.validation)]
    else:
        folds = list(forward_chaining(data.split.train, seed=config.seed))
    if config.max_validation is None:
        return folds
    draw = np.random.default_rng(config.seed)
    sizes = [min(config.max_validation, len(fold.validation)) for fold in folds]
    drawn = [np.sort(draw.choice(len(f.validation), n, replace=False)) for f, n in zip(folds, sizes, strict=True)]
    return [replace(fold, validation=fold.validation.take(which)) for fold, which in zip(folds, drawn, strict=True)]


def _one_trial(
    config: TuneConfig, space: Space, study: Any, data: Dataset, table: EmbeddingTable | None, folds: list[Fold]
) -> None:
    import numpy as np
    import optuna

    from seqrec_prompt.data.sessions import Split
    from seqrec_prompt.recommenders.base import mean_ndcg

    done = len(_done(study))
    # A sampler of its own for each trial: what is drawn depends on the trials before it, not on when this was begun.
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=config.random_trials, seed=int(np.random.default_rng([config.seed, done]).integers(2**31))
    )
    trial = study.ask()
    chosen = {name: _suggest(trial, name, value) for name, value in space.settings.items()}
    started, reached, state = time.monotonic(), [], optuna.trial.TrialState.COMPLETE
    try:
        settings = _fit_config(config, space, chosen)
        for number, fold in enumerate(folds):
            part = replace(data, split=Split(fold.train, fold.validation))
            recommender = build(settings, part, table)
            lists = recommender.recommend(fold.validation.prompts, CUTOFF, exclude_seen=config.exclude_seen)
            reached.append(mean_ndcg(lists, fold.validation.targets))
            trial.report(float(np.mean(reached)), number)
            if number + 1 < len(folds) and trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
    except SeqrecError as error:  # settings that do not go together, a run that diverged: not this trial then
        trial.set_user_attr("error", str(error))
        state = optuna.trial.TrialState.FAIL
    trial.set_user_attr("seconds", time.monotonic() - started)
    value = float(np.mean(reached)) if state == optuna.trial.TrialState.COMPLETE else None
    study.tell(trial, value, state=state)
    shown = f"NDCG@{CUTOFF} {value:.4f}" if value is not None else state.name.lower()
    print(f"trial {done + 1}: {shown}, best {_best_value(study)}  {chosen}", flush=True)


def _suggest(trial: Any, name: str, value: Any) -> Any:
    if isinstance(value, list):
        return trial.suggest_categorical(name, value)
    if not isinstance(value, Range):
        return value
    if all(isinstance(number, int) for number in (value.low, value.high, value.step or 1)):
        return trial.suggest_int(name, value.low, value.high, step=value.step or 1, log=value.log)
    return trial.suggest_float(name, value.low, value.high, step=value.step, log=value.log)


def _first(value: Any) -> Any:
    if isinstance(value, Range):
        return value.low
    return value[0] if isinstance(value, list) else value


def _fit_config(config: TuneConfig, space: Space, chosen: Mapping[str, Any]) -> FitConfig:
    fixed = {"data": config.data, "out": config.out, "recommender": space.recommender, "embeddings": config.embeddings}
    return load(FitConfig, None, {**fixed, **chosen}, verb="fit")


def _done(study: Any) -> list[Any]:
    """Trials that came to an end, whichever; not those that were broken off."""
    return [trial for trial in study.trials if trial.state.is_finished() and "broken_off" not in trial.user_attrs]


def _give_up_broken_off(study: Any) -> None:
    """A trial that was under way when a run was stopped is drawn again."""
    import optuna

    for frozen in study.trials:
        if not frozen.state.is_finished():
            trial = optuna.trial.Trial(study, frozen._trial_id)
            trial.set_user_attr("broken_off", True)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _is_over(config: TuneConfig, study: Any) -> bool:
    done = _done(study)
    values = [trial.value if trial.value is not None else float("-inf") for trial in done]
    since = len(values) - 1 - values.index(max(values)) if values else 0
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in done)
    return (
        (config.trials is not None and len(done) >= config.trials)
        or (config.minutes is not None and seconds >= 60 * config.minutes)
        or (config.without_gain is not None and since >= config.without_gain)
    )


def _best(study: Any) -> Any:
    complete = [trial for trial in _done(study) if trial.value is not None]
    return max(complete, key=lambda trial: trial.value) if complete else None


def _best_value(study: Any) -> str:
    best = _best(study)
    return "none yet" if best is None else f"{best.value:.4f}"


def _write(config: TuneConfig, space: Space, study: Any) -> None:
    """Write trials.csv and best.yaml. Raises ConfigError when no trial came to its end."""
    done, best = _done(study), _best(study)
    names = [name for name, value in space.settings.items() if isinstance(value, Range | list)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", f"ndcg@{CUTOFF}", "seconds", *names, "error"])
    for number, trial in enumerate(done, 1):
        row = [number, trial.state.name.lower(), trial.value, round(trial.user_attrs.get("seconds", 0), 2)]
        writer.writerow([*row, *(trial.params.get(name) for name in names), trial.user_attrs.get("error", "")])
    write_text(config.out / TRIALS, stream.getvalue())
    if best is None:
        error = next((t.user_attrs["error"] for t in done if "error" in t.user_attrs), "the budget ended first")
        raise ConfigError(f"no trial of {len(done)} came to its end: {error}. See {config.out / TRIALS}")
    chosen = {name: value for name, value in space.settings.items() if name not in names} | best.params
    section: dict[str, Any] = {"recommender": space.recommender}
    for dotted, value in chosen.items():
        *parents, leaf = dotted.split(".")
        node = section
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    write_text(config.out / BEST, yaml.safe_dump({"fit": section}, sort_keys=False))
    print(f"best of {len(done)} trials: NDCG@{CUTOFF} {best.value:.4f}: {config.out / BEST}")
