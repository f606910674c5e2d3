"""Training files of hosted models: chats as JSON lines, checked before they are sent.

The rules are OpenAI's for supervised fine-tuning (fine-tuning guide, "Formatting your data"): one object a line with
`messages`, known roles, text in each, the assistant's turn last, at least ten examples, none longer than the context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec_prompt.engines.tokens import TokenCounter
from seqrec_prompt.errors import DataError
from seqrec_prompt.prompting.templates import TemplateConfig, messages

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.sessions import Holdout

ROLES = ("system", "developer", "user", "assistant")
FEWEST = 10
LARGEST = 512 * 2**20  # bytes of a training file
SHOWN = 5  # problems told at once

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class TrainingFile:
    """content: JSON lines. tokens: of one epoch. longest: of one example. exact: False where these are bounds."""

    content: bytes
    examples: int
    tokens: int
    longest: int
    exact: bool


def training_file(rows: Iterator[Any], counter: TokenCounter, context: int, name: str) -> TrainingFile:
    """Write chats as JSON lines and count them. `name` says where the rows come from.

    Raises DataError naming the first rows that break a rule.
    """
    problems: list[str] = []
    lines, total, longest = [], 0, 0
    for row, chat in enumerate(rows, start=1):
        if found := list(_problems(chat)):
            problems += [f"{name}: row {row}: {text}" for text in found]
            continue
        size = counter.chat(chat)
        if size > context:
            bound = "" if counter.exact else " at most"
            problems.append(f"{name}: row {row}: {size:,} tokens{bound}, above --context {context:,}: it would be cut")
        lines.append(json.dumps({"messages": chat}, ensure_ascii=False).encode() + b"\n")
        total, longest = total + size, max(longest, size)
    if not problems and len(lines) < FEWEST:
        problems.append(f"{name}: {len(lines)} examples; a fine-tuning job needs {FEWEST}")
    content = b"".join(lines)
    if len(content) > LARGEST:
        problems.append(f"{name}: {len(content):,} bytes; a training file may have {LARGEST:,}. Leave rows out.")
    if problems:
        more = [f"… and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
        raise DataError(problems[:SHOWN] + more, "Nothing was sent.")
    return TrainingFile(content, len(lines), total, longest, counter.exact)


def require_question(template: TemplateConfig) -> None:
    """Raise ValueError for a template that a chat of one question and one title cannot follow."""
    if template.layout != "ask":
        raise ValueError("a hosted model needs template.layout 'ask': a session in one message, then the answer")
    if template.title_tokens is not None:
        raise ValueError("a hosted model reads text, not tokens: leave template.title_tokens out")
    if str(template.name) != "GenItem":
        raise ValueError(f"a hosted model is asked GenItem prompts; {template.name} is trained from a file of 'pairs'")


def session_chats(
    data: Dataset, cases: Holdout, template: TemplateConfig, counter: TokenCounter, context: int
) -> Iterator[Chat]:
    """Yield each case as a chat: the session in the user's message, the next title as the assistant's.

    Where that passes `context` tokens the oldest items go first; a title is never cut.
    """
    lines, answers = data.catalog.texts(template.attributes), data.catalog.texts()
    prompts = cases.prompts.last(template.max_items)
    for items, target in zip(prompts, cases.targets.tolist(), strict=True):
        answer = {"role": "assistant", "content": answers[target]}
        yield [*fitting([lines[item] for item in items.tolist()], template, counter, context, [answer]), answer]


def fitting(
    lines: list[str], template: TemplateConfig, counter: TokenCounter, context: int, answer: Sequence[Mapping[str, str]]
) -> Chat:
    """The prompt of the most recent `lines` that fit with the answer; the last line stays."""
    chat = messages(template, lines)
    while len(lines) > 1 and counter.chat([*chat, *answer]) > context:
        lines = lines[1:]
        chat = messages(template, lines)
    return chat


def chats_of(file: Path) -> Iterator[Any]:
    """Yield each row of a JSON-lines file as a chat, or as what is wrong with it.

    Rows are {"messages"}, or {"prompt", "completion"} as `pairs` writes them, plain or conversational.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            for line in stream:
                if line.strip():
                    yield _chat(line)
    except OSError as error:
        raise DataError([f"{file}: {error.strerror}"], "Make such a file with: seqrec-prompt pairs") from None
    except UnicodeDecodeError as error:
        raise DataError([f"{file}: not UTF-8: {error}"]) from None


def _chat(line: str) -> Any:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate), which no file of text can hold"
    except ValueError as error:
        return f"not JSON ({error})"
    if not isinstance(row, dict):
        return f"a {type(row).__name__}, not an object"
    if "messages" in row:
        return row["messages"]
    if not {"prompt", "completion"} <= set(row):
        return f"has {', '.join(row) or 'nothing'}; expected messages, or prompt and completion"
    turns: Chat = []
    for role, part in (("user", row["prompt"]), ("assistant", row["completion"])):
        turns += part if isinstance(part, list) else [{"role": role, "content": part}]
    return turns


def _problems(chat: Any) -> Iterator[str]:
    if isinstance(chat, str):
        yield chat
        return
    if not isinstance(chat, list) or not chat:
        yield "no messages"
        return
    for turn in chat:
        if not isinstance(turn, dict) or set(turn) - {"role", "content", "name"}:
            yield f"a message is not an object of role and content: {str(turn)[:60]}"
            return
        if turn.get("role") not in ROLES:
            yield f"role {turn.get('role')!r} is none of {', '.join(ROLES)}"
        content = turn.get("content")
        if not isinstance(content, str) or not content.strip():
            yield f"the {turn.get('role')} message has no text"
    if isinstance(chat[-1], dict) and chat[-1].get("role") != "assistant":
        yield "the last message is not the assistant's"
