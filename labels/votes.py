"""People's votes in the terminal: blind, in random order, one line a vote.

Which answer stands first is drawn for each row, and rows come in the order in which they were
drawn; neither the models nor what a judge said is shown. Votes are written down as they come.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import IO

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from ..data.logs.schema import LogRow
from ..data.schema import content_text
from ..terminal import visible
from .asking import Label
from .ledger import LabelLedger, Vote
from .settings import LabelSettings

_HELP = "a: the first is better; b: the second; t: equally good or bad; s: skip; q: stop"
_SAID = {"a": 1.0, "b": 0.0, "t": 0.5}


def pair_hash(strong: str, weak: str) -> str:
    """Names a pair of answers, so that a vote counts only for what was shown."""
    return hashlib.sha256(f"{strong}\0{weak}".encode(errors="replace")).hexdigest()[:16]


def take_votes(
    settings: LabelSettings,
    ledger: LabelLedger,
    rows: Sequence[LogRow],
    labels: Mapping[str, Label],
    source: IO[str],
    console: Console,
) -> None:
    """Ask for so many votes at most on rows that have two answers and no vote of this voter.

    Reads lines from `source`; its end, or q, ends the voting. A line that is no vote is asked for
    again.
    """
    voter = settings.voter
    voted = {(vote.item, vote.pair) for vote in ledger.votes if vote.voter == voter}
    found = [(row, labels[row.id]) for row in rows if row.id in labels]
    waiting = [
        (row, label)
        for row, label in found
        if label.source != "check:same" and (row.id, _pair(label)) not in voted
    ][: settings.votes]
    for number, (row, label) in enumerate(waiting, start=1):
        # Of row and voter, so that the same question comes back the same way after a break.
        strong_first = random.Random(f"{row.id}\0{voter}").random() < 0.5  # noqa: S311
        _ask_about(
            console, row, label, strong_first=strong_first, title=f"{number} of {len(waiting)}"
        )
        said = _read(source, console)
        if said == "q":
            return
        if said != "s":
            strong = _SAID[said] if strong_first else 1.0 - _SAID[said]
            ledger.vote(Vote(row.id, _pair(label), voter, strong))


def human_scores(
    ledger: LabelLedger, labels: Mapping[str, Label]
) -> Mapping[str, tuple[float, int]]:
    """(mean of the votes for strong, how many) by row, for the answers that the labels are about.

    Of a voter who voted twice on a row, the last vote counts.
    """
    last: dict[tuple[str, str], float] = {}
    for vote in ledger.votes:
        label = labels.get(vote.item)
        if label is not None and vote.pair == _pair(label):
            last[vote.item, vote.voter] = vote.strong
    votes: dict[str, list[float]] = {}
    for (item, _), strong in last.items():
        votes.setdefault(item, []).append(strong)
    return {item: (sum(each) / len(each), len(each)) for item, each in votes.items()}


def _ask_about(
    console: Console, row: LogRow, label: Label, *, strong_first: bool, title: str
) -> None:
    first, second = label.strong_reply.text, label.weak_reply.text
    if not strong_first:
        first, second = second, first
    console.print(Rule(f"{title}: the request"))
    for message in row.messages:
        content = content_text(message.get("content")) or "(no text)"
        who = "" if len(row.messages) == 1 else f"{message.get('role')}: "
        console.print(Text(visible(who + content)))
    for name, text in (("A", first), ("B", second)):
        console.print(Rule(name))
        console.print(Text(visible(text)))
    console.print(Rule())


def _read(source: IO[str], console: Console) -> str:
    console.print(Text(_HELP))
    while True:
        console.print("> ", end="")
        line = source.readline()
        if not line:
            return "q"
        said = line.strip().lower()
        if said in (*_SAID, "s", "q"):
            return said
        console.print(Text(f"{visible(line.strip())!r} is none of a, b, t, s, q"))


def _pair(label: Label) -> str:
    return pair_hash(label.strong_reply.text, label.weak_reply.text)
