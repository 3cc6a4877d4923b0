"""Whether a session should stay with its model: the price of a switch against what it saves.

A model that has answered a session holds its prompt in a cache; the other one has to be paid for
all of it anew (`providers.prompt_cache`). For the rest of the session as it is expected, STAY and
SWITCH are priced, and the model is changed only where that pays, at natural points: the first step
of a session or of a subagent, a new turn of the user, after a compaction, after failed tool results
in a row. Without labels nobody knows what quality is worth in USD, so the router's wish stands for
it: a wish for the strong model is followed at the next natural point, a wish for the weak one is
leave to go there, which is taken where it costs less.

Amounts are numbers, or arrays of them, one a session: the server decides one step, `eval.replay`
steps of thousands of sessions at once, by the same formulas.
"""

import re
from dataclasses import dataclass, field, replace

import numpy as np

from ..providers.prompt_cache import Amount, Cached, CachePrice

# The chance that a session ends with the step after n others is 1 / (A + B n): the longer it has
# lasted, the longer it goes on. Fitted by maximum likelihood on 589 steps of 16 sessions of coding
# agents: `python -m thriftroute.research.session_length` prints the fit and its errors.
A, B = 4.33, 1.77
HORIZON = 200  # no plan looks further: the law has no mean, and the longest session had 217 steps
# What a session that has no steps yet is taken to be like, the same data's means: tokens that a
# step adds to the prompt, tokens of its answer, and steps from one natural point to the next.
NEW_TOKENS, OUTPUT_TOKENS, TURN_STEPS = 1200.0, 220.0, 20.0
# So many tool results failed in a row, or the same call failed so often: the loop is stuck.
STUCK = 3
# A prompt that shrinks to less than this part of the one before was compacted.
COMPACTED = 0.7
# How Codex tells that a command failed: its status, in JSON or in words.
_EXIT = re.compile(r'"exit_code":\s*(-?\d+)|(?:[Ee]xit code|exited with code):?\s*(-?\d+)')
_LOOKED_AT = 2000  # characters at either end of a result


@dataclass(frozen=True, slots=True)
class Pair:
    """The two models. `strong_share`: at how many of the natural points the router wants strong,
    in [0, 1]; where that is seldom, leaving the strong model saves for longer. `strong_output` and
    `weak_output`: tokens of an answer of either, before the session has shown its own."""

    strong: CachePrice
    weak: CachePrice
    strong_share: Amount = 0.0
    strong_output: Amount = OUTPUT_TOKENS
    weak_output: Amount = OUTPUT_TOKENS


@dataclass(frozen=True, slots=True)
class Step:
    """A step to come: tokens of its prompt, its time in seconds, whether it is a natural point, and
    how many tool results failed in a row before it, in all and of the same call."""

    prompt: Amount
    now: Amount
    natural: Amount = False
    failed: Amount = 0
    repeated: Amount = 0

    @property
    def stuck(self) -> Amount:
        """Whether the loop goes nowhere."""
        return np.maximum(self.failed, self.repeated) >= STUCK


@dataclass(frozen=True, slots=True)
class SessionState:
    """What is known of a session before a step.

    `steps` done and natural `points` among them; tokens of the last `prompt`, of what was `added`
    to it and of the `output`, in all; `on_strong`: who answered last; what each cache holds;
    whether a stuck loop was `escalated`, which is done once.
    """

    steps: Amount = 0
    points: Amount = 0
    prompt: Amount = 0.0
    added: Amount = 0.0
    output: Amount = 0.0
    on_strong: Amount = False
    strong: Cached = field(default_factory=Cached)
    weak: Cached = field(default_factory=Cached)
    escalated: Amount = False

    def after(
        self, step: Step, pair: Pair, strong: Amount, output: Amount, kept: Amount = np.inf
    ) -> "SessionState":
        """The state when the strong model, or else the weak one, has answered a step.

        kept: tokens that the prompt shares with the one before it, from the start: all of those
        unless it was compacted or its start was changed.
        """
        held = []
        for cached, price, answered in (
            (self.strong, pair.strong, strong), (self.weak, pair.weak, np.logical_not(strong)),
        ):  # fmt: skip
            new = price.after(step.prompt, step.now)
            tokens = np.where(answered, new.tokens, np.minimum(cached.tokens, kept))
            held.append(Cached(tokens, np.where(answered, new.until, cached.until)))
        first = np.equal(self.steps, 0)
        return replace(
            self,
            steps=self.steps + 1,
            points=self.points + np.logical_or(step.natural, first),
            prompt=step.prompt,
            added=self.added + np.where(first, 0.0, np.maximum(step.prompt - self.prompt, 0.0)),
            output=self.output + output,
            on_strong=strong,
            strong=held[0],
            weak=held[1],
            escalated=np.logical_or(self.escalated, np.logical_and(step.stuck, strong)),
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """What the session is expected to cost from a step on, in USD, with either model, over so many
    `steps`, that one among them."""

    strong: Amount
    weak: Amount
    steps: Amount


def exit_code(result: str) -> int | None:
    """The status of a command that a tool's result tells of, if it does."""
    ends = (result[:_LOOKED_AT], result[-_LOOKED_AT:])
    found = next(filter(None, map(_EXIT.search, ends)), None)
    return None if found is None else int(found.group(1) or found.group(2))


def is_failure(result: str) -> bool:
    """Whether a tool's result says that its call failed: by the word "error" in front, or a status
    of a command that is not 0."""
    return result.lstrip()[:5].lower() == "error" or bool(exit_code(result))


def further_steps(done: Amount, a: float = A, b: float = B) -> Amount:
    """Steps of a session that are expected after `done` others, at most HORIZON: the integral of
    the chance to last for m more, (u / (u + b m)) ** (1 / b) with u = a + b done."""
    u, power = a + b * np.asarray(done, np.float64), 1 / b
    rest = (u + b * HORIZON) ** (1 - power) - u ** (1 - power)
    return u**power / (b * (1 - power)) * rest


def expected(state: SessionState, step: Step, pair: Pair) -> Expected:
    """What the rest of the session costs with either model, up to where the router is expected to
    want the strong one again; to come back to it then is part of what the weak one costs."""
    done = np.asarray(state.steps, np.float64)
    steps = further_steps(done)
    turn = (done + TURN_STEPS) / (np.asarray(state.points, np.float64) + 1)
    share = np.asarray(pair.strong_share, np.float64)
    back = 1 - (1 - share) ** (steps / turn)
    until = turn * back / np.where(share > 0, share, 1.0)
    steps = np.where(share > 0, np.clip(until, 1.0, steps), steps)
    # Means, with one step more that is like those of other sessions.
    new = (state.added + NEW_TOKENS) / np.maximum(done, 1)
    own = np.where(state.on_strong, pair.strong_output, pair.weak_output)
    longer = (state.output + own) / (done + 1) / own
    context = step.prompt + new * steps / 2

    def usd(price: CachePrice, cached: Cached, output: Amount) -> Amount:
        first = price.step(step.prompt, cached.readable(step.prompt, step.now), output)
        return first + (steps - 1) * price.step(context + new, context, output)

    strong, weak = pair.strong, pair.weak
    again = (step.prompt + new * steps) * np.maximum(strong.write - strong.read, 0.0) / 1e6
    stay = usd(strong, state.strong, longer * pair.strong_output)
    leave = usd(weak, state.weak, longer * pair.weak_output) + back * again
    return Expected(stay, leave, steps)


def choose(
    state: SessionState, step: Step, pair: Pair, wants_strong: Amount | None = None
) -> tuple[Amount, Expected]:
    """Whether the strong model answers a step, and what either is expected to cost.

    wants_strong: the router's wish (score >= threshold); None: no router, and cost alone decides.
    """
    found = expected(state, step, pair)
    # The one that answers stays at the same cost.
    cheaper = np.where(state.on_strong, found.strong <= found.weak, found.strong < found.weak)
    escalates = np.logical_and(step.stuck, np.logical_not(state.escalated))
    if wants_strong is None:
        wants_strong = escalates = False
    wanted = np.logical_or(np.logical_or(wants_strong, escalates), cheaper)
    natural = np.logical_or(np.equal(state.steps, 0), np.logical_or(step.natural, step.stuck))
    return np.where(natural, wanted, state.on_strong), found


@dataclass(frozen=True, slots=True)
class SwitchDecision:
    """Who answers a step, whether that is a switch, what was expected, and why."""

    strong: bool
    switched: bool
    expected: Expected
    reason: str


def decide(
    state: SessionState, step: Step, pair: Pair, wants_strong: bool | None = None
) -> SwitchDecision:
    """`choose` for one session, with the reason in words."""
    chosen, found = choose(state, step, pair, wants_strong)
    strong, steps = bool(chosen), float(found.steps)
    found = Expected(float(found.strong), float(found.weak), steps)
    first = not state.steps
    switched = not first and strong != bool(state.on_strong)
    names = {True: "strong", False: "weak"}
    usd = {True: found.strong, False: found.weak}
    told = f"${usd[strong]:.3f} against ${usd[not strong]:.3f} for about {steps:.0f} steps"
    if not (first or step.natural or step.stuck):
        reason = "no natural point: the session stays with its model"
    elif strong and wants_strong:
        reason = "the router wants the strong model"
    elif strong and found.strong > found.weak:
        reason = "the loop is stuck: the strong model takes it over, once"
    elif first:
        reason = f"{names[strong]} is expected to cost less: {told}"
    else:
        reason = f"{'a switch' if switched else 'staying'} is expected to cost less: {told}"
    return SwitchDecision(strong, switched, found, reason)
