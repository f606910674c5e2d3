"""Typed configuration: one frozen model per verb, filled from a YAML file and from `--key value` overrides.

Every verb is `function(config)`. The same config class gives the command line its flags and `--help`, gives the YAML
file its keys, and is written, resolved, into the manifest of what the verb made.
"""

from __future__ import annotations

import argparse
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from seqrec_prompt.errors import ConfigError

C = TypeVar("C", bound="Config")
LONGEST_METAVAR = 64  # choices that take more room move from the flag to its explanation, which is wrapped


class Config(BaseModel):
    """Base of all configurations: immutable, no unknown keys, defaults validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def resolved(self) -> dict[str, Any]:
        """Return every setting, defaults included, as JSON values."""
        return self.model_dump(mode="json")


def own_first(cls: type[Config], shared: Sequence[str]) -> None:
    """Put a verb's own settings before those it shares with others: that is what its --help begins with."""
    own = [name for name in cls.model_fields if name not in shared]
    cls.__pydantic_fields__ = {name: cls.model_fields[name] for name in [*own, *shared] if name in cls.model_fields}


def parse(
    cls: type[C],
    argv: Sequence[str] | None = None,
    *,
    verb: str,
    description: str = "",
    example: str = "",
    switches: Mapping[str, str] | None = None,
) -> C:
    """Build `cls` from a command line: flags named after the fields, plus `--config FILE`.

    `--help` prints every field with its meaning and default. switches: flags that the caller has taken out of `argv`
    before, and their meaning, for the help. Raises ConfigError listing every bad key or value at once.
    """
    fields = dict(_walk(cls))
    parser = _Parser(
        prog=f"seqrec-prompt {verb}",
        description=description,
        epilog=f"example:\n  {example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    help_config = f"YAML file with these settings, flat or under '{verb}:'; flags given beside it win"
    parser.add_argument("--config", metavar="FILE", type=Path, help=help_config)
    for switch, meaning in (switches or {}).items():
        parser.add_argument(switch, action="store_true", default=argparse.SUPPRESS, help=meaning)
    for name, field in fields.items():
        _add_flag(parser, name, field)
    given, unknown = parser.parse_known_args(argv)
    overrides = vars(given)
    file = overrides.pop("config")
    overrides = {name: _given(fields[name], value) for name, value in overrides.items()}
    flags = [*flags_of(cls), "--config", *(switches or ())]
    # A word that follows an unknown flag is its value: one mistake, told once.
    problems = [_unknown(word.split("=")[0], flags) for word in unknown if word.startswith("--")]
    if unknown and not problems:
        problems = [f"unexpected argument '{word}'" for word in unknown]
    if problems:
        raise ConfigError(listing(problems))
    return load(cls, file, overrides, verb=verb)


def load(cls: type[C], file: Path | None = None, overrides: Mapping[str, Any] | None = None, *, verb: str) -> C:
    """Build `cls` from a YAML file (flat, or the section `verb` of a file of sections) and dotted `overrides`."""
    values = _read_section(file, verb, cls) if file else {}
    for dotted, value in (overrides or {}).items():
        *parents, leaf = dotted.split(".")
        node = values
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = value
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        where = f"{file}: " if file else ""
        raise ConfigError(where + listing([_explain(cls, e) for e in error.errors()])) from None


def flags_of(cls: type[Config]) -> dict[str, str]:
    """Every flag of a config class, and what may follow it: choices joined by '|', or PATH, N, X, TEXT; "" nothing."""
    found = {}
    for name, field in _walk(cls):
        kind, _ = _value_type(field.annotation)
        found[f"--{_dashed(name)}"] = "" if kind is bool else _choices(kind) or _metavar(kind)
        if kind is bool:
            found[f"--no-{_dashed(name)}"] = ""
    return found


def defaults_of(cls: type[Config]) -> dict[str, Any]:
    """Every setting of a config class under its dotted name, with its default."""
    return {name: field.default for name, field in _walk(cls)}


def as_yaml(config: Config, verb: str) -> str:
    """Write a configuration as the section `verb` of a YAML file that `load` reads back.

    What was given stands as it is; what is left to its default follows as comments, to be seen and changed.
    """
    given = config.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump({verb: given}, sort_keys=False, allow_unicode=True, width=120)
    lines = [text.rstrip("\n") if given else f"{verb}:"]
    everything = flat(config.model_dump(mode="json"))
    set_by_user = flat(given)
    defaults = [f"  # {name}: {inline(value)}" for name, value in everything.items() if name not in set_by_user]
    if defaults:
        lines += ["  # left to their defaults:", *defaults]
    return "\n".join(lines) + "\n"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested settings dotted names, as flags have them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def inline(value: Any) -> str:
    """A value as it stands in YAML after a colon, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values; ConfigError where it is none."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}. Expected a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected 'key: value' lines, found a {type(content).__name__}.")
    return content


def read_table(kind: type[C], file: Path, what: str, flag: str, shipped: Path) -> C:
    """Read a YAML file that a user may replace by one of his own.

    what, flag, shipped: what it holds, what names it and the file like which it is written, for the ConfigError.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return kind.model_validate(content)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}. {flag} names a YAML file like {shipped}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{file}: not a file of {what} like {shipped}:\n  " + "\n  ".join(lines)) from None


def _read_section(file: Path, verb: str, cls: type[Config]) -> dict[str, Any]:
    content = read_yaml(file)
    if verb in content and verb not in cls.model_fields and isinstance(content[verb], dict | None):
        return dict(content[verb] or {})
    if content and all(isinstance(v, dict | None) and k not in cls.model_fields for k, v in content.items()):
        raise ConfigError(f"{file}: has sections {', '.join(map(str, content))} but none named '{verb}'.")
    return content


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line like every other mistake."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help")


def _walk(cls: type[Config], prefix: str = "") -> typing.Iterator[tuple[str, FieldInfo]]:
    for name, field in cls.model_fields.items():
        kind, _ = _value_type(field.annotation)
        if isinstance(kind, type) and issubclass(kind, Config):
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    kind, is_list = _value_type(field.annotation)
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(field)}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = _metavar(kind)
        if is_list:
            options["nargs"] = "+"
    parser.add_argument(f"--{_dashed(name)}", **options)


def _given(field: FieldInfo, value: Any) -> Any:
    """A flag's value; 'none' unsets what may be unset, and empties a list that may be empty."""
    if value not in ("none", ["none"]):
        return value
    return None if _optional(field) else () if field.default == () else value


def _optional(field: FieldInfo) -> bool:
    return type(None) in typing.get_args(field.annotation)


def _value_type(annotation: Any) -> tuple[Any, bool]:
    """Strip `| None`, constraints and list/tuple from an annotation: (element type, is it a list)."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _value_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(inner) == 1:
            return _value_type(inner[0])
        return str, False
    if typing.get_origin(annotation) in (list, tuple):
        return _value_type(typing.get_args(annotation)[0])[0], True
    return annotation, False


def _metavar(kind: Any) -> str:
    if choices := _choices(kind):
        return choices if len(choices) <= LONGEST_METAVAR else "NAME"
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _choices(kind: Any) -> str:
    return "|".join(map(str, typing.get_args(kind))) if typing.get_origin(kind) is typing.Literal else ""


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if len(choices := _choices(_value_type(field.annotation)[0])) > LONGEST_METAVAR:
        text += f"; {choices.replace('|', ', ')}"
    if field.is_required():
        text += " (required)"
    elif _optional(field) and field.default is None:
        text += " (default: none)"
    elif field.default not in (None, "", ()) and not isinstance(field.default, bool):
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text += f" (default: {default})"
    elif isinstance(field.default, bool):
        text += f" (default: {'yes' if field.default else 'no'})"
    return text.strip().replace("%", "%%")


def _explain(cls: type[Config], error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    key = ".".join(loc)
    if error["type"] == "extra_forbidden":
        return _unknown(key, [name for name, _ in _walk(cls)])
    if error["type"] == "missing":
        return f"'{key}' is missing: give --{_dashed(key)} or set it in the config file"
    if error["type"] == "value_error" and not key:
        return str(error["ctx"]["error"])
    wording = {"path_type": "not a path"}.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "literal_error":
        wording += did_you_mean(str(error["input"]), re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    field = dict(_walk(cls)).get(key)
    hidden = field is not None and not field.repr  # somebody may have put a key there
    return f"'{key}': {wording}" if hidden else f"'{key}' = {error['input']!r}: {wording}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ": did you mean 'x'?" with the name most like `word`, dashes before it aside; "" where none is like it."""
    names = {name.lstrip("-"): name for name in known}  # dashes that all flags share make none of them alike
    near = difflib.get_close_matches(word.lstrip("-"), names, n=1, cutoff=0.6)
    return f": did you mean '{names[near[0]]}'?" if near else ""


def _unknown(key: str, known: Sequence[str]) -> str:
    # A key at the wrong level first, then a misspelt one.
    moved = [name for name in known if name.lstrip("-").split(".")[-1] == key.lstrip("-")]
    hint = f": did you mean '{moved[0]}'?" if moved else did_you_mean(key, known)
    return f"unknown setting '{key}'" + (hint or "; see --help")


def listing(problems: Sequence[str]) -> str:
    """Write several problems as one message, or the only one as it is."""
    return problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems:", *problems])


def _dashed(name: str) -> str:
    return name.replace("_", "-")
