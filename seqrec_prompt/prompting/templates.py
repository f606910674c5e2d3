"""Prompts as text: a session's items, one a line, then what is asked for, in the variants of Harte et al. (RecSys'23).

GenItem: the next title. GenList: a ranked list of titles. Classify: the cluster of items that the next one is of.
Rank: candidates of another recommender, which the prompt shows, in order. Their wording lies in variants/*.yaml.

Two layouts. `ask` is the paper's: the session stands in the prompt and the model answers. `continue`, for GenItem, lets
the session be the beginning of a list that the model goes on with: one training sequence then teaches every item after
the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from seqrec_prompt.config import Config

NEWLINE = "\n"
# Stand for session and candidates while the chat template is rendered; the text around them is what the model sees.
PLACE, OFFER = "\x02session\x03", "\x02candidates\x03"
VARIANTS = Path(__file__).parent / "variants"


class TemplateConfig(Config):
    """How a session is written and what is asked for; what is not set is as in the variant's file in variants/."""

    file: Path | None = Field(
        None, exclude=True, description="YAML file with these settings; the ones given beside it win"
    )
    name: Literal["GenItem", "GenList", "Classify", "Rank"] = Field("GenItem", description="prompt variant")
    layout: Literal["continue", "ask"] = Field(
        "continue", description="'continue', GenItem only: the session is a list the model goes on with; 'ask': prompt "
        "and answer"
    )  # fmt: skip
    chat: bool = Field(False, description="write the prompt through the model's chat template")
    instruction: str = Field("One shopping session, one item per line:", description="first line of the prompt")
    question: str = Field("The next item of this session:", description="last line of the prompt, layout 'ask' only")
    choices: str = Field("Items that may come next, in no order:", description="line before the candidates, Rank only")
    attributes: tuple[str, ...] = Field((), description="catalog attributes written in brackets after each title")
    max_items: int = Field(20, ge=1, description="most recent items of a session that are written")
    title_tokens: int | None = Field(
        None, ge=1, description="cut titles after so many tokens, or after the one that tells them from all others, "
        "whichever is later: less to read, write and learn where titles are long; unset: whole titles"
    )  # fmt: skip
    companions: int = Field(
        0, ge=0, description="GenItem: below each title of the session, so many of those that most often stood next to "
        "it in train, on either side: what need not be learned by heart"
    )  # fmt: skip
    list_length: int = Field(20, ge=1, description="titles of a list, GenList; candidates of a prompt, Rank")
    clusters: int = Field(200, ge=2, description="k-means clusters of the items' embeddings, Classify")

    @model_validator(mode="before")
    @classmethod
    def _from_files(cls, values: Any) -> Any:
        """Read `file` away: what counts, and is compared later, is what it says."""
        if not isinstance(values, dict):
            return values
        file = values.get("file")
        own = {} if file is None else _settings(Path(file))
        given = {name: value for name, value in values.items() if name != "file"}
        shipped = VARIANTS / f"{given.get('name', own.get('name', 'GenItem'))}.yaml"
        return (_settings(shipped) if shipped.exists() else {}) | own | given

    @field_validator("instruction", "question", "choices")
    @classmethod
    def _one_paragraph(cls, text: str) -> str:
        if PLACE in text or OFFER in text or not text.strip():
            raise ValueError("must be some text")
        return text

    @model_validator(mode="after")
    def _only_one_item_goes_on(self) -> TemplateConfig:
        if self.name != "GenItem" and self.layout != "ask":
            raise ValueError(f"{self.name} is asked for: template.layout is 'ask'")
        if self.companions and self.name != "GenItem":
            raise ValueError(f"'template.companions' helps to say what comes next: leave it out with {self.name}")
        return self

    @property
    def lists(self) -> bool:
        """Whether an answer is several titles, one a line."""
        return self.name in ("GenList", "Rank")


def _settings(file: Path) -> dict[str, Any]:
    """Read a template file. Raises ValueError, which names the file, when it is none."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{file}: {error.strerror}; template.file names a YAML file such as {VARIANTS}/*.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected 'key: value' lines, as in {VARIANTS}/*.yaml")
    return content


def messages(template: TemplateConfig, lines: Sequence[str], candidates: Sequence[str] = ()) -> list[dict[str, str]]:
    """Write a prompt as chat messages; `lines` are the session's items, `candidates` those of Rank."""
    if template.layout == "continue":
        opening = [{"role": "user", "content": template.instruction}]
        return (
            [*opening, {"role": "assistant", "content": "".join(line + NEWLINE for line in lines)}]
            if lines
            else opening
        )
    content = NEWLINE.join([template.instruction, *lines, *_offered(template, candidates), template.question])
    return [{"role": "user", "content": content}]


def text(template: TemplateConfig, lines: Sequence[str], candidates: Sequence[str] = ()) -> str:
    """Write a prompt as plain text; `lines` are the session's items, `candidates` those of Rank."""
    tail = [*_offered(template, candidates), template.question] if template.layout == "ask" else []
    return "".join(line + NEWLINE for line in [template.instruction, *lines, *tail])


def completion(template: TemplateConfig, answers: Sequence[str]) -> str:
    """Write an answer as text, without the end token: a title, or titles one a line."""
    return "".join(answer + NEWLINE for answer in answers) if template.lists else "".join(answers)


def _offered(template: TemplateConfig, candidates: Sequence[str]) -> list[str]:
    return [template.choices, *candidates] if template.name == "Rank" else []
