"""Make comparisons.jsonl and prompts.jsonl of data/samples.

    python -m thriftroute.research.samples             # writes both there
    python -m thriftroute.research.samples OTHER_DIR

The same bytes on every run. The prompts are filled-in templates of the project's own; the outcomes
are simulated by the rule in `outcome`, never measured: see data/samples/README.md.
"""

# The tables of prose below read best with one phrase a line.
# ruff: noqa: E501, SIM905

import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "data" / "samples"
SEED = 20240
N_COMPARISONS = 400
N_PROMPTS = 100
STRONG, WEAK, SOURCE = "strong-sim", "weak-sim", "thriftroute-samples"

# A template is (difficulty 0..10, text). `{name}` draws a word of WORDS or calls a maker of MAKERS,
# `{int:2-99}` draws a number; the same slot twice draws twice. A text is a prompt, or a list of
# turns: user, assistant, user, ... with the system text first where it starts with "system:".
Template = tuple[float, str | list[str]]

WORDS: Mapping[str, Sequence[str]] = {
    "name": "Amara Bastian Chiara Dmitri Elif Farid Greta Hideo Imani Jonas Katya Lucía Mirko "
    "Nadia Oskar Priya Quentin Rosa Stellan Tomoko".split(),
    "city": "Lisbon Nairobi Kraków Osaka Montréal Tbilisi Valparaíso Hanoi Tromsø Adelaide".split(),
    "country": "Portugal Kenya Poland Japan Canada Georgia Chile Vietnam Norway Peru".split(),
    "language": "French Spanish German Italian Portuguese Swedish Dutch Turkish".split(),
    "animal": "otter heron badger gecko walrus magpie hedgehog lynx tortoise bat".split(),
    "food": ["lentil soup", "flatbread", "rhubarb cake", "fried rice", "pumpkin stew", "oat bars"],
    "thing": "umbrella bicycle lantern notebook kettle backpack guitar telescope".split(),
    "place": ["the library", "the train station", "the harbour", "the bakery", "the museum"],
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday".split(),
    "lang": ["Python", "TypeScript", "Go", "Rust", "Java", "C++"],
    "topic": ["photosynthesis", "inflation", "tides", "vaccines", "rainbows", "compost", "glaciers"],
    "product": ["a hiking app", "a second-hand bookshop", "a solar charger", "a pottery course",
                "a meal-kit service", "a bike repair van"],
    "team": ["support", "sales", "warehouse", "design", "finance", "research"],
    "issue": ["a late delivery", "a double charge", "a broken hinge", "a lost password",
              "a cancelled booking", "a wrong size"],
    "sentence": ["The meeting was moved to the afternoon.", "I left my keys on the kitchen table.",
                 "Could you tell me where the nearest pharmacy is?", "We would like a room "
                 "with a view of the lake.", "My train is late because of the snow.",
                 "She has been learning the violin since spring."],
    "algo": ["a segment tree with lazy propagation", "a suffix automaton", "a skip list",
             "a lock-free queue", "a B-tree with node splitting", "a persistent hash trie",
             "a consistent-hashing ring with replicas"],
    "system": ["a rate limiter", "a job scheduler", "a collaborative text editor",
               "a payment ledger", "a metrics pipeline", "a photo-sharing feed"],
    "theorem": ["there are infinitely many primes that leave remainder 3 when divided by 4",
                "every finite integral domain is a field",
                "a continuous image of a compact set is compact",
                "the square root of 3 plus the square root of 5 is irrational",
                "every bounded sequence of reals has a convergent subsequence",
                "a tree with n vertices has exactly n - 1 edges",
                "the harmonic numbers are never integers beyond the first"],
    "area": ["group theory", "measure theory", "graph theory", "linear algebra", "topology",
             "number theory", "probability"],
    "metric": ["conversion rate", "weekly retention", "mean basket size", "refund rate",
               "time to first reply"],
    "colour": "red green blue yellow white black purple orange".split(),
    "feeling": "tired cheerful nervous bored excited curious".split(),
    "job": "plumber nurse teacher beekeeper pilot carpenter librarian".split(),
}  # fmt: skip

_SUBJECTS = ["The committee", "Our northern branch", "A small group of volunteers", "The supplier",
             "The new ferry line", "An outside auditor", "The night shift", "The school board"]  # fmt: skip
_ACTIONS = ["reported a rise in costs", "asked for two more weeks", "found a fault in the records",
            "welcomed the change with caution", "replaced the old equipment",
            "lost a third of its members", "published a plan for the winter",
            "turned down the offer"]  # fmt: skip
_REASONS = ["because the budget was cut", "although demand stayed high", "after a long debate",
            "while repairs were still going on", "despite earlier promises",
            "since nobody had kept a copy", "before the rules were changed"]  # fmt: skip


def _passage(rng: random.Random, sentences: int) -> str:
    parts = [
        f"{rng.choice(_SUBJECTS)} {rng.choice(_ACTIONS)} {rng.choice(_REASONS)}, and about "
        f"{rng.randint(3, 95)} people in {rng.choice(WORDS['city'])} were affected."
        for _ in range(sentences)
    ]
    return " ".join(parts)


def _table(rng: random.Random) -> str:
    rows = ["week,channel,visits,orders,refunds"]
    for week in range(1, rng.randint(7, 12)):
        channel = rng.choice(["search", "email", "social", "direct"])
        visits = rng.randint(400, 9000)
        rows.append(
            f"{week},{channel},{visits},{visits // rng.randint(12, 60)},{rng.randint(0, 30)}"
        )
    return "\n".join(rows)


def _trace(rng: random.Random) -> str:
    name = rng.choice(["worker", "cache", "billing", "session", "planner"])
    lines = [f"Traceback of {name} process {rng.randint(100, 999)}:"]
    for _ in range(rng.randint(3, 6)):
        lines.append(f"  {name}/{rng.choice(['core', 'queue', 'store', 'retry'])}.py line "
                     f"{rng.randint(10, 900)}: lock held for {rng.randint(2, 900)} ms")  # fmt: skip
    lines.append(rng.choice(["deadlock detected, giving up", "value changed during iteration",
                             "connection reset while writing", "stale version, write refused"]))  # fmt: skip
    return "\n".join(lines)


def _puzzle(rng: random.Random) -> str:
    names = rng.sample(list(WORDS["name"]), 4)
    pets = rng.sample(list(WORDS["animal"]), 4)
    hats = rng.sample(list(WORDS["colour"]), 4)
    return (
        f"{', '.join(names[:3])} and {names[3]} sit in a row. Each has one pet ({', '.join(pets)}) "
        f"and one hat ({', '.join(hats)}). {names[0]} sits somewhere left of the owner of the "
        f"{pets[2]}. The {hats[1]} hat is next to the {pets[0]}. {names[3]} does not wear "
        f"{hats[0]} and is not at an end. The {pets[3]} is two places from {names[1]}."
    )


MAKERS: Mapping[str, Callable[[random.Random], str]] = {
    "passage": lambda rng: _passage(rng, rng.randint(4, 7)),
    "report": lambda rng: _passage(rng, rng.randint(9, 14)),
    "table": _table,
    "trace": _trace,
    "puzzle": _puzzle,
}

LABELLED: Mapping[str, Sequence[Template]] = {
    "greeting": [
        (0.3, "Hi there, I am {name} and I feel {feeling} this {day}. How are you doing?"),
        (0.5, "Good morning from {city}! Please wish my friend {name} a happy birthday in one line."),
        (0.6, "Hello! It's {day} and I'm {feeling}. Say something nice to me and to {name}."),
    ],
    "fact": [
        (1.2, "What is the capital of {country}, and roughly how many people live there?"),
        (1.5, "In one or two sentences, what does a {job} do on an ordinary {day}?"),
        (2.0, "Tell me three simple facts about the {animal} that a child of {int:5-10} would like."),
        (2.5, "Explain {topic} to a {int:8-14}-year-old in one short paragraph."),
    ],
    "arithmetic": [
        (0.8, "What is {int:12-99} plus {int:12-99}? Answer with the number only."),
        (2.2, "{name} buys {int:3-9} tickets at {int:11-48} euros each and has a voucher for "
              "{int:5-20} euros. How much is left to pay?"),
        (5.6, "A loan of {int:12-80} thousand euros at {int:3-9} percent a year is paid back in equal "
              "monthly amounts over {int:4-15} years. Derive the monthly amount and the total "
              "interest, and show the steps."),
        (8.0, "Find all pairs of positive integers x and y for which x squared minus {int:2-30} times "
              "y squared equals {int:1-12}, or show that there are none. Justify every step."),
    ],
    "conversion": [
        (1.3, "Convert {int:3-90} miles to kilometres and round to one decimal, please."),
        (1.6, "My oven shows {int:300-450} degrees Fahrenheit. What is that in Celsius for {food}?"),
        (2.8, "The recipe for {food} serves {int:3-6}. Scale {int:200-450} grams of flour, {int:2-5} "
              "eggs and {int:100-300} ml of milk to {int:8-20} people, in cups and ounces."),
    ],
    "translation": [
        (1.8, 'Translate into {language}: "{sentence}"'),
        (2.4, 'How would I say "{sentence}" in polite {language}, and how is it pronounced?'),
        (5.2, "Translate this notice into {language} in formal legal style, keep every condition and "
              "mark each phrase that has no exact equivalent: {passage}"),
    ],
    "rewriting": [
        (1.7, "Correct the spelling: {name} definately recieved the {thing} on {day} at {place}."),
        (2.3, 'Make this sentence sound friendlier: "Send me the {thing} before {day}, {name}."'),
        (1.5, "Is this review positive or negative? The {thing} arrived {int:2-9} days late and the "
              "{colour} paint was scratched, so I sent it back."),
        (1.9, "List the names, places and numbers in this text: {passage}"),
    ],
    "summary": [
        (3.0, "Summarise the following in two sentences. {passage}"),
        (3.6, "Give me the {int:3-5} main points of this report as bullets. {report}"),
        (5.4, "Read this report and say which of its statements could contradict each other, which "
              "need evidence, and what a sceptical reader would ask first. {report}"),
    ],
    "email": [
        (2.2, "Write a short e-mail to {name} saying that I cannot come to {place} on {day}."),
        (2.9, "Draft a polite reply to a customer who complains about {issue} with {product}."),
        (5.0, "Draft an e-mail to the {team} team that announces {int:5-30} percent lower budgets, "
              "explains the reasons without blame, answers the three hardest questions in advance "
              "and keeps people motivated."),
    ],
    "ideas": [
        (1.8, "Suggest {int:4-8} names for {product} with a {animal} in the logo."),
        (2.2, "What can I cook with {food} left over and {int:2-6} eggs? Keep it simple."),
        (2.6, "Write a four-line rhyme about a {feeling} {animal} that lost its {thing}."),
    ],
    "code": [
        (1.9, "Write a {lang} function that reverses a string and one example of calling it."),
        (2.3, "In {lang}, how do I read a text file line by line and skip the first {int:1-5} lines?"),
        (4.3, "Write a {lang} program that reads a CSV of orders, groups by customer and prints the "
              "{int:3-10} largest totals, with handling of malformed rows."),
        (7.0, "Here is a failing service written in {lang}. Find the most likely race condition, "
              "explain the interleaving and propose a fix with tests.\n{trace}"),
        (8.6, "Implement {algo} in {lang}, with its invariants in comments, worst-case bounds, and "
              "property-based tests that would catch an off-by-one in the boundary cases."),
    ],
    "sql": [
        (2.4, "Write an SQL query for all customers from {city} who ordered a {thing}."),
        (6.8, "Write one SQL query, without subqueries in SELECT, that gives for each team the median "
              "{metric}, the rank of its best week and a {int:3-9}-week moving average, correct when "
              "weeks are missing. Then explain which indexes it needs."),
    ],
    "logic": [
        (7.2, "Solve this puzzle and prove that the answer is unique, or show two answers. {puzzle}"),
        (7.7, "{name}, {name} and {name} are knights, who always tell the truth, or knaves, who always "
              "lie. The first says exactly {int:1-2} of us are knaves. The second says the first and "
              "third are of one kind. The third says nothing useful for {int:2-6} days, then agrees "
              "with the second. Who is what? Consider every case."),
    ],
    "proof": [
        (8.1, "Prove rigorously that {theorem}. State every lemma that you use."),
        (8.8, "State and prove a non-trivial result of {area} that implies that {theorem}, and give a "
              "counterexample that shows why each hypothesis is needed."),
        (7.6, "A student of {area} claims that {theorem}, and argues by induction on the number {int:2-9} "
              "only. Find the gap in such an argument and repair it with a full proof."),
    ],
    "planning": [
        (3.2, "Plan a relaxed day in {city} for {int:2-6} friends who like {food} and {place}."),
        (5.8, "Plan {int:6-12} weeks of work for a {team} team of {int:4-9} that must launch {product} "
              "with a fixed budget: milestones, dependencies, risks, and what to drop first."),
        (7.9, "Design {system} for {int:2-90} million users in {int:2-5} regions: data model, consistency "
              "guarantees, failure modes, capacity estimate, and a migration path without downtime."),
    ],
    "analysis": [
        (4.6, "Here is our weekly data. Which channel did best and why? Show the numbers.\n{table}"),
        (7.1, "From this data estimate the effect of the channel on {metric}, with a confidence interval, "
              "say what confounds it, and design an experiment of at most {int:2-8} weeks that would "
              "settle it.\n{table}"),
        (6.4, "Our {metric} fell by {int:4-30} percent after we changed the price of {product} in "
              "{country}. List the competing explanations, the data that would tell them apart, and "
              "the statistical test for each, with its assumptions."),
    ],
    "conversation": [
        (1.2, ["Can you recommend a gift for {name}, who is a {job}?",
               "Sure! How about a {thing}?", "Nice, in {colour}? Just say yes or no."]),
        (2.0, ["system:You are the assistant of {product}.", "I have {issue}. What now?",
               "I am sorry to hear that. May I have your order number?",
               "It is {int:10000-99999}. When will I hear back?"]),
        (5.1, ["Explain {topic} in two sentences.", "Here is a short version of it.",
               "Now compare it with {topic}, with the trade-offs, numbers and a small table."]),
        (7.8, ["I am writing {system} in {lang}.", "Good choice. What should it do first?",
               "It must survive the loss of {int:1-3} of {int:4-9} nodes. Derive the quorum sizes, "
               "prove that no acknowledged write is lost, and write the core loop."]),
        (8.3, ["system:You are a careful tutor of {area}.", "I want to understand why {theorem}.",
               "Let us start from the definitions. Where does it get difficult?",
               "I do not see how the general case follows. Please give the complete proof and check "
               "it on an example of size {int:3-8}."]),
    ],
    "not-english": [
        (0.7, "Hola, soy {name} de {city}. ¿Cómo estás este día? Dime algo agradable."),
        (1.6, "Wie heißt die Hauptstadt von {country}, und wofür ist sie bekannt? Bitte in zwei Sätzen."),
        (2.1, "Écris un petit message pour dire à {name} que je serai en retard de {int:5-40} minutes."),
        (1.8, "请用一句话介绍一下{city}，并推荐{int:2-5}个适合周末去的地方。"),
        (7.7, "Beweise ausführlich die folgende Aussage und nenne jeden benutzten Satz: {theorem}."),
        (7.4, "Escribe en {lang} una implementación de {algo}, con análisis de complejidad y pruebas."),
        (7.5, "请用{lang}实现{algo}，分析最坏情况的复杂度，并证明其正确性。"),
    ],
}  # fmt: skip

# Other wording, same kinds of task: what a user has before anyone has labelled it.
UNLABELLED: Mapping[str, Sequence[Template]] = {
    "greeting": [(0.4, "Hey! {name} here. Quick hello before {day} gets busy.")],
    "fact": [
        (1.3, "Which sea or ocean is closest to {city}? One line is enough."),
        (2.4, "I never understood {topic}. Could you give me the gist, {name} style, no jargon?"),
    ],
    "arithmetic": [
        (1.6, "Split a bill of {int:40-300} euros evenly between {int:3-9} people, {name} pays the tip."),
        (7.9, "How many ways are there to tile a {int:3-9} by {int:10-40} board with dominoes, up to "
              "reflection? Derive a recurrence and prove it."),
    ],
    "conversion": [(1.5, "How many litres are {int:2-60} US gallons, about?")],
    "translation": [(2.1, 'I need this on a sign in {language}: "{sentence}"')],
    "summary": [(3.3, "TL;DR for a busy manager, please: {report}")],
    "email": [(2.7, "Help me tell {name} from {team} that {issue} was our mistake. Keep it warm.")],
    "code": [
        (2.2, "One-liner in {lang} to drop duplicates from a list but keep the order?"),
        (8.2, "Port {algo} to {lang} without garbage and make it safe for {int:2-64} writers. Argue why "
              "no update is lost."),
    ],
    "logic": [(7.4, "Work out who sits where, and whether a clue is redundant. {puzzle}")],
    "proof": [(8.4, "Show me why {theorem}; I want an argument from {area} that a referee accepts.")],
    "planning": [(5.9, "We have {int:5-20} weeks to get {product} into {country}. What is the critical "
                       "path, and where will it slip?")],
    "analysis": [(6.9, "Is the drop in {metric} real or noise? Choose a test, check its assumptions, "
                       "and compute.\n{table}")],
    "conversation": [(3.0, ["What should I know before visiting {city}?", "What time of the year?",
                            "In autumn, with {int:2-4} children."])],
    "not-english": [
        (1.5, "¿Puedes darme una receta sencilla de {food} para {int:2-8} personas?"),
        (7.3, "Conçois {system} pour {int:2-60} millions d'utilisateurs et justifie chaque compromis."),
    ],
}  # fmt: skip


def outcome(difficulty: float, rng: random.Random) -> str:
    """The stated rule: who wins on a prompt of this difficulty (0..10), noise included.

    z = difficulty + noise, the noise a sum of four uniform numbers with mean 0 and standard
    deviation 2. Strong wins where z > 5.4, weak where z < 0.3, else a tie. One in twenty outcomes is
    drawn at random instead, as careless judges do.
    """
    # Uniform sums instead of a Gaussian: no logarithm or cosine that may differ between platforms.
    z = difficulty + 2.0 * 3.0**0.5 * (sum(rng.random() for _ in range(4)) - 2.0)
    careless = rng.random()
    if careless < 0.05:
        return ("a", "tie", "b")[int(careless * 60)]
    if z > 5.4:
        return "a"
    return "b" if z < 0.3 else "tie"


# Said before some prompts, whatever their difficulty: people do not all start at the point.
OPENERS = ["Quick question. ", "I am new to this. ", "For my neighbour {name}: ", "Please help me. ",
           "I asked {name} already, without success. ", "This is for {place}. "]  # fmt: skip


def fill(text: str, rng: random.Random) -> str:
    """`text` with every slot filled."""

    def slot(match: re.Match[str]) -> str:
        name, low, high = match.groups()
        if low is not None:
            return str(rng.randint(int(low), int(high)))
        return MAKERS[name](rng) if name in MAKERS else rng.choice(WORDS[name])

    return re.sub(r"\{(\w+)(?::(\d+)-(\d+))?\}", slot, text)


def request(text: str | list[str], rng: random.Random) -> dict[str, Any]:
    """{"prompt": ...} or {"messages": [...]} of a template's text."""
    if isinstance(text, str):
        opener = rng.choice(OPENERS) if text.isascii() and rng.random() < 0.4 else ""
        return {"prompt": fill(opener + text, rng)}
    messages = []
    turns = 0
    for turn in text:
        if turn.startswith("system:"):
            messages.append({"role": "system", "content": fill(turn.removeprefix("system:"), rng)})
            continue
        role = "assistant" if turns % 2 else "user"
        messages.append({"role": role, "content": fill(turn, rng)})
        turns += 1
    return {"messages": messages}


def identity(asked: Mapping[str, Any]) -> str:
    """What must be unique: the user's words, as readers render them."""
    if "prompt" in asked:
        return " ".join(str(asked["prompt"]).lower().split())
    users = [m["content"] for m in asked["messages"] if m["role"] == "user"]
    return " ".join("\n\n".join(users).lower().split())


def draw(
    templates: Mapping[str, Sequence[Template]], n: int, rng: random.Random, seen: set[str]
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """n distinct requests with category and difficulty, template after template in turn."""
    flat = [(category, *item) for category, items in templates.items() for item in items]
    made = 0
    for turn in range(n * 20):
        category, difficulty, text = flat[turn % len(flat)]
        asked = request(text, rng)
        if identity(asked) in seen:
            continue
        seen.add(identity(asked))
        yield category, difficulty, asked
        made += 1
        if made == n:
            return
    raise RuntimeError("the templates do not give enough distinct prompts")


def make(folder: Path) -> None:
    """Write comparisons.jsonl and prompts.jsonl into `folder`."""
    # Not for secrets: a seeded generator is the point.
    rng = random.Random(SEED)  # noqa: S311
    seen: set[str] = set()
    comparisons = [
        {
            **asked,
            "model_a": STRONG,
            "model_b": WEAK,
            "outcome": outcome(difficulty, rng),
            "source": SOURCE,
            "category": category,
        }
        for category, difficulty, asked in draw(LABELLED, N_COMPARISONS, rng, seen)
    ]
    rng.shuffle(comparisons)
    prompts = [
        {**asked, "category": category}
        for category, _, asked in draw(UNLABELLED, N_PROMPTS, rng, seen)
    ]
    rng.shuffle(prompts)
    for name, rows in (("comparisons.jsonl", comparisons), ("prompts.jsonl", prompts)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / name).write_bytes(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
