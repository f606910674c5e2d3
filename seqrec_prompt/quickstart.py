"""`quickstart`: the main job on the bundled sample, from raw files to a table, as the commands one would type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

import seqrec_prompt
from seqrec_prompt.config import Config
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.steps import Step

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

    def steps(self) -> list[Step]:
        """What is asked of each verb beside the recipe: where things lie, and what the caller wants otherwise."""
        out, recipe = self.out, _recipe()
        data, adapter, lists = out / "data", out / "adapter", [out / "untuned.parquet", out / "tuned.parquet"]
        files = {name: str(SAMPLE / f"{name}.csv.gz") for name in ("interactions", "items")}
        model = {"data": data, "model": self.model}
        shorter = {} if self.max_steps is None else {"max_steps": self.max_steps}
        fewer = {} if self.max_sessions is None else {"max_sessions": self.max_sessions}
        asked: list[tuple[str, dict[str, Any]]] = [
            ("prepare", files | {"out": data}),
            ("finetune", model | shorter | {"seed": self.seed, "out": adapter}),
            ("recommend", model | fewer | {"out": lists[0]}),
            ("recommend", model | fewer | {"adapter": adapter, "out": lists[1]}),
            ("evaluate", {"data": data, "recommendations": lists, "out": out / "evaluation"}),
        ]
        return [Step(verb, settings, recipe) for verb, settings in asked]


def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Run prepare, finetune, recommend (untuned and tuned) and evaluate; returns what metrics.json holds.

    Each step is printed as the command that does the same. What is done already is not repeated, so a stopped run goes
    on. Raises what the verbs raise; a model that cannot be had is told before anything is made.
    """
    from seqrec_prompt.engines.models import resolve

    resolve(config.model)
    made: dict[str, Any] = [step.run() for step in config.steps()][-1]
    return made


def _recipe() -> Path:
    for place in RECIPES:
        if place.exists():
            return place
    raise ArtifactError(f"{RECIPES[0]} is missing. Install seqrec_prompt again.")
