"""Which LLM recommends, and how it decodes: the settings that every verb shares that asks one for lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from seqrec_prompt.config import Config, own_first
from seqrec_prompt.engines.pricing import address_only
from seqrec_prompt.prompting.templates import TemplateConfig

PASSING = ("batch_size", "key_variable", "timeout")  # settings that change no list: a run may go on with others
SERVERS = ("base_url", "served", "key_variable", "timeout")  # settings of a server that runs already
VLLM_BATCH = 256  # sessions decoded together where vLLM plans what is read at once


class LLMConfig(Config):
    """Settings of an LLM that recommends."""

    engine: Literal["transformers", "vllm", "openai"] = Field(
        "transformers",
        description="what runs the model; 'vllm' takes more sessions at once (extra [vllm]); 'openai': a vLLM server "
        "that runs already (extra [openai])",
    )
    base_url: str | None = Field(None, description="with openai: the server, as http://localhost:8000/v1", repr=False)
    served: str | None = Field(
        None, description="with openai: the server's name of model or adapter, where it has several"
    )
    key_variable: str | None = Field(
        None,
        description="with openai: environment variable that holds the server's key; unset: it is sent none",
        repr=False,
    )
    timeout: float = Field(120, gt=0, description="with openai: seconds to wait for one answer", repr=False)
    model: str = Field("smollm2", description="hub name, directory, or 'smollm2' (bundled)")
    revision: str | None = Field(None, description="revision of a hub model")
    adapter: Path | None = Field(
        None, description="adapter made by 'finetune', which brings its template; without it the model is used as it is"
    )
    scoring: Literal["renormalised", "joint"] = Field(
        "renormalised",
        description="'renormalised': the model's distribution over the catalog; 'joint': its own probability of every "
        "token of a title, slower",
    )
    prior_weight: float = Field(
        0, ge=0, description="λ: take λ·log p(title | empty session) from each score; more of the less popular items"
    )
    template: TemplateConfig | None = Field(None, description="prompt; with an adapter, the one it was trained with")
    embeddings: Path | None = Field(
        None, description="template Classify without an adapter only: directory made by 'embed' of this catalog"
    )
    context: int = Field(2048, ge=16, description="longest prompt with a title, in tokens; older items go first")
    batch_size: int = Field(
        8,
        ge=1,
        le=1024,
        description=f"sessions read together; unset with vllm and openai: {VLLM_BATCH}; a run may go on with another",
    )
    budget: int = Field(2000, ge=1, description="tokens read after each prompt at most before a list goes uncertified")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the model")

    @model_validator(mode="before")
    @classmethod
    def _server_plans_itself(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("engine") in ("vllm", "openai"):
            return {"batch_size": VLLM_BATCH} | values
        return values

    @field_validator("base_url")
    @classmethod
    def _address_only(cls, url: str | None) -> str | None:
        return None if url is None else address_only(url)

    @model_validator(mode="after")
    def _server_belongs_to_openai(self) -> LLMConfig:
        if self.engine == "openai":
            if self.base_url is None:
                raise ValueError("'engine' openai needs 'base_url': the server, as http://localhost:8000/v1")
            if self.adapter is not None and self.served is None:
                raise ValueError("'adapter' has a name of its own at the server: give it as 'served'")
            if "dtype" in self.model_fields_set:
                raise ValueError("'dtype' is the server's with 'engine' openai: leave it out")
        elif strange := [name for name in SERVERS if name in self.model_fields_set]:
            raise ValueError(f"'{strange[0]}' is for 'engine' openai: leave out one or give the other")
        return self

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Put a verb's own settings first."""
        own_first(cls, tuple(LLMConfig.model_fields))
