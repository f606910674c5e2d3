"""`completion`: a script that lets a shell complete verbs, flags and choices."""

from __future__ import annotations

import importlib
from typing import Literal

from pydantic import Field

from seqrec_prompt.config import Config, flags_of
from seqrec_prompt.console import SWITCHES
from seqrec_prompt.verbs import VERBS

# The verb is the longest that the words begin with; a flag's choices are offered after it, files where it has none.
SCRIPT = """\
_seqrec_prompt() {{
    local word=${{COMP_WORDS[COMP_CWORD]-}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb= flags= choices=
    case "${{COMP_WORDS[1]-}} ${{COMP_WORDS[2]-}} " in
{cases}
    esac
    COMPREPLY=()
    if [ -z "$verb" ] || [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
        return
    fi
    case "$verb $before" in
{choices}
    esac
    if [ -n "$choices" ]; then
        COMPREPLY=($(compgen -W "$choices" -- "$word"))
    elif [ "${{word#-}}" != "$word" ]; then
        COMPREPLY=($(compgen -W "$flags" -- "$word"))
    fi
}}
complete -o default -F _seqrec_prompt seqrec-prompt
"""
FOR_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


class CompletionConfig(Config):
    """Settings of `completion`."""

    shell: Literal["bash", "zsh"] = Field(description="whose script to print")


def completion(config: CompletionConfig) -> str:
    """Print, and return, the script; `eval "$(seqrec-prompt completion --shell bash)"` puts it to use."""
    cases, choices = [], []
    # The longer verb first, where one begins another.
    for verb in sorted(VERBS, key=lambda verb: -len(verb)):
        entry = VERBS[verb]
        flags = flags_of(getattr(importlib.import_module(entry.module), entry.config))
        every = " ".join([*flags, "--config", *SWITCHES, "--help"])
        cases.append(f"        '{verb} '*) verb='{verb}' flags='{every}' ;;")
        choices += [
            f"        '{verb} {flag}') choices='{values.replace('|', ' ')}' ;;"
            for flag, values in flags.items()
            if "|" in values
        ]
    words = " ".join(dict.fromkeys(word for verb in VERBS for word in verb.split()))
    script = SCRIPT.format(cases="\n".join(cases), choices="\n".join(choices), verbs=words)
    script = FOR_ZSH + script if config.shell == "zsh" else script
    print(script, end="")
    return script
