"""``rythmiq completion``: the script by which a shell completes commands and options."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Shell(StrEnum):
    """The shells that are known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell to print a script for.")]) -> None:
    """Print a script that lets a shell complete commands, options and their values.

    \b
    Examples:
      rythmiq completion bash > ~/.local/share/bash-completion/completions/rythmiq
      rythmiq completion zsh > "${fpath[1]}/_rythmiq"
      rythmiq completion fish > ~/.config/fish/completions/rythmiq.fish
    """
    from typer import completion as of_typer

    script = of_typer.get_completion_script(  # type: ignore[attr-defined]
        prog_name="rythmiq", complete_var="_RYTHMIQ_COMPLETE", shell=shell.value
    )
    typer.echo(script)
