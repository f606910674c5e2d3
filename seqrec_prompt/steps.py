"""Verbs that call verbs: each call is the command one would type, printed before it runs."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from seqrec_prompt.config import Config, defaults_of, did_you_mean, flat, load
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.verbs import VERBS


@dataclass(frozen=True)
class Step:
    """One call: `settings`, nested or dotted, win over those of the configuration `file`."""

    verb: str
    settings: Mapping[str, Any]
    file: Path | None = None

    @cached_property
    def config(self) -> Config:
        """What the verb is called with; ConfigError for an unknown verb, or settings that it does not take."""
        if self.verb not in VERBS:
            raise ConfigError(f"unknown verb '{self.verb}'{did_you_mean(self.verb, VERBS)}")
        cls: type[Config] = getattr(importlib.import_module(VERBS[self.verb].module), VERBS[self.verb].config)
        return load(cls, self.file, self.settings, verb=self.verb)

    @property
    def command(self) -> str:
        """The same call as a command line."""
        words = ["seqrec-prompt", *self.verb.split()]
        words += [] if self.file is None else ["--config", str(self.file)]
        defaults = defaults_of(type(self.config))
        for name, value in flat(self.settings).items():
            if value is not None or defaults.get(name) is not None:
                words += _words(name.replace("_", "-"), "none" if value is None else value)
        return shlex.join(words)

    def run(self) -> Any:
        """Print the command and call the verb; raises what the verb raises."""
        config = self.config
        print(f"$ {self.command}", flush=True)
        return getattr(importlib.import_module(VERBS[self.verb].module), self.verb.split()[-1])(config)


@runtime_checkable
class CallsVerbs(Protocol):
    """The configuration of a verb that calls others."""

    def steps(self) -> Sequence[Step]:
        """The calls, in order."""


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
