"""People's votes in the terminal: blind, in random order, one line a vote.

Which answer stands first is drawn for each row; neither the models nor what a judge said is shown.
"""

import hashlib
import random
from collections import defaultdict
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
    The end of `source`, or q, ends the voting."""
    voter = settings.voter
    voted = {(vote.item, vote.pair) for vote in ledger.votes if vote.voter == voter}
    waiting = [
        (row, label)
        for row in rows
        if (label := labels.get(row.id)) is not None
        and label.source != "check:same"
        and (row.id, _pair(label)) not in voted
    ][: settings.votes]
    for number, (row, label) in enumerate(waiting, start=1):
        # Of row and voter, so that the same question comes back the same way after a break.
        strong_first = random.Random(f"{row.id}\0{voter}").random() < 0.5  # noqa: S311
        answers = label.strong_reply.text, label.weak_reply.text
        console.print(Rule(f"{number} of {len(waiting)}: the request"))
        for message in row.messages:
            content = content_text(message.get("content")) or "(no text)"
            who = "" if len(row.messages) == 1 else f"{message.get('role')}: "
            console.print(Text(visible(who + content)))
        for name, text in zip("AB", answers if strong_first else answers[::-1], strict=True):
            console.print(Rule(name))
            console.print(Text(visible(text)))
        console.print(Rule())
        said = _read(source, console)
        if said == "q":
            return
        if said != "s":
            strong = _SAID[said] if strong_first else 1.0 - _SAID[said]
            ledger.vote(Vote(row.id, _pair(label), voter, strong))


def human_scores(
    ledger: LabelLedger, labels: Mapping[str, Label]
) -> Mapping[str, tuple[float, int]]:
    """(mean of the votes for strong, how many) by row, for the answers that the labels are about;
    the last vote of each voter counts."""
    last: dict[tuple[str, str], float] = {}
    for vote in ledger.votes:
        label = labels.get(vote.item)
        if label is not None and vote.pair == _pair(label):
            last[vote.item, vote.voter] = vote.strong
    votes: dict[str, list[float]] = defaultdict(list)
    for (item, _), strong in last.items():
        votes[item].append(strong)
    return {item: (sum(each) / len(each), len(each)) for item, each in votes.items()}


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
