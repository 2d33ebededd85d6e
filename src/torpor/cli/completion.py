"""Completion for shells, made from the grammar: eval "$(torpor --show-completion bash)"."""

from __future__ import annotations

from argparse import ArgumentParser, _SubParsersAction

from torpor.cli.grammar import grammar

_SCRIPT = """\
_torpor() {{
    local words
    case "${{COMP_WORDS[1]}}" in
{cases}
        *) words={top!r} ;;
    esac
    [ "$COMP_CWORD" -gt 1 ] || words={top!r}
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _torpor torpor
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: str) -> str:
    """The script for one of grammar.SHELLS; zsh runs bash's."""
    top = grammar()
    parsers = {name: parser for action in top._actions if isinstance(action, _SubParsersAction) for name, parser in action.choices.items()}
    cases = "\n".join(f"        {name}) words={' '.join(_options(parser))!r} ;;" for name, parser in parsers.items())
    script = _SCRIPT.format(cases=cases, top=" ".join([*parsers, *_options(top)]))
    return _ZSH + script if shell == "zsh" else script


def _options(parser: ArgumentParser) -> list[str]:
    return [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
