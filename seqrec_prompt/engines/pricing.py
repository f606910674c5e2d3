"""What a hosted job will cost, said before anything is sent."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from seqrec_prompt.config import Config, own_first, read_table
from seqrec_prompt.errors import CostError

OPENAI = "https://api.openai.com/v1"
SHIPPED = Path(__file__).with_name("prices.yaml")
MILLION = 1_000_000
HOSTED_FIELDS = ("base_url", "key_variable", "timeout", "encoding", "prices", "free", "max_cost", "yes")


def address_only(url: str) -> str:
    """An address of a service, which goes into manifests. Raises ValueError for what is none or holds a key."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address like https://api.openai.com/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("must hold no key or password; a key comes from the environment, see 'key_variable'")
    return url.rstrip("/")


class ServiceConfig(Config):
    """Where a hosted service is."""

    base_url: str = Field(
        OPENAI, description="the service: OpenAI, or any that speaks its protocol (vLLM, Azure, …)", repr=False
    )
    key_variable: str | None = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the key; never the key; none: none is sent",
        repr=False,
    )
    timeout: float = Field(120, gt=0, description="seconds to wait for one answer")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Put a verb's own settings first."""
        own_first(cls, HOSTED_FIELDS)

    _address_only = field_validator("base_url")(address_only)

    @field_validator("key_variable")
    @classmethod
    def _name_only(cls, name: str | None) -> str | None:
        if name is not None and not name.isidentifier():
            raise ValueError("must be the name of an environment variable; the key is read from there")
        return name


class HostedConfig(ServiceConfig):
    """Settings of everything that is billed by a hosted service."""

    encoding: str | None = Field(
        None, description="tiktoken encoding that counts tokens, or 'bytes', an upper bound; by default the model's"
    )
    prices: Path | None = Field(
        None, description="YAML file of prices, to be written like seqrec_prompt/engines/prices.yaml, which has few"
    )
    free: bool = Field(False, description="this service sends no bill, it is your own; needs another --base-url")
    max_cost: float = Field(10, ge=0, description="refuse when the quote is above this many dollars")
    yes: bool = Field(False, description="go on after the quote without asking")

    @model_validator(mode="after")
    def _openai_is_not_free(self) -> HostedConfig:
        if self.free and self.base_url == OPENAI:
            raise ValueError("'free' is for a service of your own: give its --base-url")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that decide what is made: not how long is waited, nor what it may cost."""
        passing = {name for name in HostedConfig.model_fields if name != "base_url"}
        return {name: value for name, value in self.resolved().items() if name not in passing}


class Price(Config):
    """Dollars for a million tokens."""

    training: float | None = Field(None, ge=0)
    input: float | None = Field(None, ge=0)
    output: float | None = Field(None, ge=0)
    batch: float = Field(1, ge=0, le=1)


class Prices(Config):
    """A file of prices: when and where they were read, and what each model costs."""

    date: datetime.date
    source: str
    models: dict[str, Price]


@dataclass(frozen=True)
class Quote:
    """What a job costs in dollars: tokens of each kind, their prices, and whether the tokens are exact or a bound.

    tokens, price: by kind (training, input, output), the price for a million. exact: False where a bound went in.
    """

    model: str
    tokens: Mapping[str, int]
    price: Mapping[str, float]
    exact: bool
    prices_of: str
    source: str

    @property
    def cost(self) -> float:
        """Dollars."""
        return sum(self.price[kind] * count for kind, count in self.tokens.items()) / MILLION

    def facts(self) -> dict[str, Any]:
        """As JSON, for a manifest."""
        return asdict(self) | {"cost": self.cost}

    def __str__(self) -> str:
        if not any(self.price.values()):
            return f"quote: $0 for {self.model}: {self.prices_of} ({self.source})"
        parts = [f"{count:,} {kind} tokens at ${self.price[kind]:g} a million" for kind, count in self.tokens.items()]
        most = "" if self.exact else "at most "
        return (
            f"quote: {most}${self.cost:.4f} for {self.model}: {', '.join(parts)}\n"
            f"       (prices of {self.prices_of}; check them: {self.source})"
        )


def quote(config: HostedConfig, model: str, tokens: Mapping[str, int], *, exact: bool, batch: bool = False) -> Quote:
    """Price `tokens` of `model` by kind. Raises CostError when a price is unknown."""
    if config.free:
        return Quote(model, tokens, dict.fromkeys(tokens, 0.0), exact, "this service sends no bill", config.base_url)
    file = config.prices or SHIPPED
    known = read_table(Prices, file, "prices", "--prices", SHIPPED)
    price = known.models.get(model) or known.models.get(":".join(model.split(":")[:2])) or Price()
    found = {kind: getattr(price, kind) for kind in tokens}
    if unknown := [kind for kind, value in found.items() if value is None]:
        raise CostError(
            f"{file} has no {' and no '.join(unknown)} price of the model '{model}'; nothing was sent. Copy the file, "
            f"write in what {known.source} says, and give it with --prices (or --free, on a server of your own)."
        )
    share = price.batch if batch else 1
    charged = {kind: value * (1 if kind == "training" else share) for kind, value in found.items()}
    return Quote(model, tokens, charged, exact, known.date.isoformat(), known.source)


def approve(offer: Quote, config: HostedConfig) -> None:
    """Print the quote and return when it may be spent. Raises CostError when it may not."""
    print(offer)
    if offer.cost > config.max_cost:
        raise CostError(
            f"the quote, ${offer.cost:.4f}, is above --max-cost {config.max_cost:g}; nothing was sent. Raise it, or "
            "send less."
        )
    if config.yes or config.free:
        return
    if not sys.stdin.isatty():
        raise CostError("nobody is there to agree to the quote; nothing was sent. Give --yes to go on without asking.")
    try:
        answer = input("Go on? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().casefold() not in ("y", "yes"):
        raise CostError("not agreed to; nothing was sent.")
