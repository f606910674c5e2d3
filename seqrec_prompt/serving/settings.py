"""What is served: the settings that `serve` and `demo` share."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from seqrec_prompt.recommenders.llm.settings import LLMConfig

NAMES_AN_LLM = ("model", "adapter")
FOR_ALL = ("batch_size",)  # of the LLM's settings, what counts for every recommender


class ServedConfig(LLMConfig):
    """Settings of everything that keeps recommenders ready: fitted ones, an LLM, or both."""

    data: Path = Field(description="directory made by 'prepare'")
    recommenders: tuple[Path, ...] = Field((), description="directories made by 'fit'; each is called by its name")
    model: str = Field(
        "smollm2", description="hub name, directory, or 'smollm2' (bundled); an LLM answers if it or adapter is given"
    )
    out_of_stock: Path | None = Field(None, description="table of item_id: items that nobody is given")
    batch_size: int = Field(8, ge=1, description="sessions answered together")

    @property
    def asks_llm(self) -> bool:
        """Whether an LLM is among the recommenders."""
        return any(name in self.model_fields_set for name in NAMES_AN_LLM)

    @model_validator(mode="after")
    def _something_answers(self) -> ServedConfig:
        if not self.asks_llm and not self.recommenders:
            raise ValueError("nothing would answer: give 'recommenders', 'model', 'adapter', or several of them")
        own = set(LLMConfig.model_fields) - {*NAMES_AN_LLM, *FOR_ALL}
        if not self.asks_llm and (strange := sorted(own & self.model_fields_set)):
            raise ValueError(f"'{strange[0]}' is a setting of an LLM: give its 'model' or 'adapter', or leave it out")
        return self
