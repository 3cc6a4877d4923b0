"""The command `demo`: the whole job, on the built-in samples."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import require_extra


def add_commands(app: typer.Typer) -> None:
    """Put the command of this module on `app`."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for what the demo makes.")] = Path(
        "out/demo"
    ),
    bert: Annotated[bool, typer.Option("--bert/--no-bert", help="Also train a short bert.")] = True,
) -> None:
    """Train, evaluate, calibrate and route, on the built-in samples; minutes on 2 cores.

    Example: thriftroute demo --out out/demo
    """
    require_extra("torch", "train")
    require_extra("matplotlib", "eval")
    from ..testing.demo import run_demo

    run_demo(out, with_bert=bert)
