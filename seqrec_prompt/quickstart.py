"""`quickstart`: the main job on the bundled sample, from raw files to a table, as the commands one would type."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import Any

from pydantic import Field

import seqrec_prompt
from seqrec_prompt.cli import VERBS
from seqrec_prompt.config import Config, load
from seqrec_prompt.errors import ArtifactError

PACKAGE = Path(seqrec_prompt.__file__).parent
# A wheel carries the recipe of the repository inside the package.
RECIPES = (PACKAGE / "quickstart.yaml", PACKAGE.parent / "recipes" / "configs" / "quickstart.yaml")
SAMPLE = PACKAGE / "data" / "sample"


class QuickstartConfig(Config):
    """Settings of `quickstart`."""

    out: Path = Field(Path("runs/quickstart"), description="directory for everything that is made")
    model: str = Field("smollm2", description="hub name, directory, or 'smollm2' (bundled)")
    max_steps: int | None = Field(None, ge=1, description="training steps; unset: the recipe's, about four minutes")
    max_sessions: int | None = Field(None, ge=1, description="test sessions to recommend for; unset: the recipe's")
    seed: int = Field(0, ge=0, lt=2**32, description="order of the examples and start of the adapter")


def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Run prepare, finetune, recommend (untuned and tuned) and evaluate; returns what metrics.json holds.

    Each step is printed as the command that does the same. What is done already is not repeated, so a stopped run goes
    on. Raises what the verbs raise; a model that cannot be had is told before anything is made.
    """
    from seqrec_prompt.engines.models import resolve

    recipe = _recipe()
    resolve(config.model)
    made: dict[str, Any] = {}
    for verb, settings in _steps(config):
        words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", *_words(value))]
        print("$ " + shlex.join(["seqrec-prompt", verb, "--config", str(recipe), *words]), flush=True)
        module = importlib.import_module(VERBS[verb].module)
        made = getattr(module, verb)(load(getattr(module, VERBS[verb].config), recipe, settings, verb=verb))
    return made


def _steps(config: QuickstartConfig) -> list[tuple[str, dict[str, Any]]]:
    """What is asked of each verb beside the recipe: where things lie, and what the caller wants otherwise."""
    out = config.out
    data, adapter, lists = out / "data", out / "adapter", [out / "untuned.parquet", out / "tuned.parquet"]
    files = {name: str(SAMPLE / f"{name}.csv.gz") for name in ("interactions", "items")}
    model = {"data": data, "model": config.model}
    shorter = {} if config.max_steps is None else {"max_steps": config.max_steps}
    fewer = {} if config.max_sessions is None else {"max_sessions": config.max_sessions}
    return [
        ("prepare", files | {"out": data}),
        ("finetune", model | shorter | {"seed": config.seed, "out": adapter}),
        ("recommend", model | fewer | {"out": lists[0]}),
        ("recommend", model | fewer | {"adapter": adapter, "out": lists[1]}),
        ("evaluate", {"data": data, "recommendations": lists, "out": out / "evaluation"}),
    ]


def _words(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _recipe() -> Path:
    for place in RECIPES:
        if place.exists():
            return place
    raise ArtifactError(f"{RECIPES[0]} is missing. Install seqrec_prompt again.")
