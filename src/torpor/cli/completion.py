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
    script = _SCRIPT.format(
        cases=cases, top=" ".join([*parsers, *(word for action in top._actions for word in action.option_strings if word.startswith("--"))])
    )
    return _ZSH + script if shell == "zsh" else script


def _options(parser: ArgumentParser) -> list[str]:
    """Its options, and the words of its own group of commands."""
    words = [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
    inner = [action.choices for action in parser._actions if isinstance(action, _SubParsersAction)]
    below = dict.fromkeys(word for choices in inner for each in choices.values() for word in _options(each))
    return [*(name for choices in inner for name in choices), *words, *(word for word in below if word not in words)]
