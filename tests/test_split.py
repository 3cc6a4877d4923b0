import os

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.question_text import normalise, parse, prompt_key, stem
from thriftroute.data.readers import read_prompts
from thriftroute.data.sources import source
from thriftroute.data.split import decontaminate, dedupe, split_by_hash
from thriftroute.errors import DataError

needs_data = pytest.mark.skipif(
    not os.environ.get("THRIFTROUTE_DATA"), reason="THRIFTROUTE_DATA is not set"
)

QUESTION = "Which planet of the solar system has the shortest year?"
FOUR = f"{QUESTION}\nA. Mercury\nB. Venus\nC. Mars\nD. Earth\nAnswer:"


def test_normalise_and_key() -> None:
    assert normalise("  Ｗhat\n\tIS  it? ") == "what is it?"
    assert prompt_key("What is it?") == prompt_key("what  is it?\n")
    assert len(prompt_key("\ud800")) == 40


@pytest.mark.parametrize(
    "prompt",
    [
        QUESTION,
        FOUR,
        f"Question: {QUESTION}\n(A) Mercury\n(B) Venus\n",
        f"Q: {QUESTION}\nA) Venus\nB) Mercury\nC) Pluto\nD) Mars\nE) Ceres\nThe answer is:",
        f"{QUESTION} (A) Mercury (B) Venus (C) Mars",
        f"{QUESTION}\nOptions:\nA: Mercury\nB: Venus",
        f"{QUESTION}\nAfter careful thought, put you final answer in \\boxed{{...}}.",
        f"{QUESTION} Let's think step by step.",
        f"Answer the following multiple choice question.\n{QUESTION}\nA. Mercury\nB. Venus",
        "The following are multiple choice questions (with answers) about astronomy.\n\n"
        f"What is a moon made of?\nA. Rock\nB. Cheese\nAnswer: A\n\n{FOUR}",
    ],
)
def test_stem_is_the_question_alone(prompt: str) -> None:
    assert stem(prompt) == "which planet of the solar system has the shortest year"


def test_options_are_taken_apart() -> None:
    assert parse(FOUR).options == ("mercury", "venus", "mars", "earth")
    assert parse(QUESTION).options == ()


@pytest.mark.parametrize(
    "prompt",
    [
        "Rate these:\n1. It was great.\n2. It was bad.",
        "Continue the talk.\nA: hello there\nmy friend\nC: goodbye",
        "I study at school A. Then B. came.",
    ],
)
def test_what_is_no_list_of_options_stays_in_the_stem(prompt: str) -> None:
    question = parse(prompt)
    assert question.options == ()
    words = normalise(prompt).replace(".", " ").replace(":", " ").split()
    assert question.stem.split() == words


def test_a_prompt_of_nothing_but_wrapping_or_symbols() -> None:
    assert stem("Let's think step by step.") == "let s think step by step"
    assert stem("😀😀") == ""
    assert stem("") == ""


@pytest.mark.parametrize(
    ("prompt", "generic"),
    [
        ("Which of the following statements is true?", True),
        ("Tariffs", True),
        (QUESTION, False),
    ],
)
def test_generic_stems(prompt: str, generic: bool) -> None:
    assert parse(prompt).generic is generic


def test_split_is_stable_and_never_parts_a_prompt() -> None:
    prompts = [f"prompt number {i}" for i in range(4000)]
    parts = split_by_hash(prompts, (0.8, 0.1, 0.1), seed=1)
    assert set(parts.tolist()) == {0, 1, 2}
    # Within five standard deviations of a binomial share.
    assert abs((parts == 0).mean() - 0.8) < 5 * (0.8 * 0.2 / 4000) ** 0.5
    more = split_by_hash(["new", *prompts, " PROMPT  number 0\n"], (0.8, 0.1, 0.1), seed=1)
    np.testing.assert_array_equal(more[1:-1], parts)
    assert more[-1] == parts[0]
    assert (split_by_hash(prompts, (0.8, 0.1, 0.1), seed=2) != parts).any()


def test_split_by_stem_keeps_a_question_together() -> None:
    prompts = [f"{i} {QUESTION}\nA. x\nB. {j}" for i in range(30) for j in range(2)]
    parts = split_by_hash(prompts, (0.5, 0.5), key=stem)
    np.testing.assert_array_equal(parts[::2], parts[1::2])
    assert len(set(parts.tolist())) == 2


@pytest.mark.parametrize("fractions", [(), (0.5,), (0.5, 0.6), (1.5, -0.5), (float("nan"), 1)])
def test_split_refuses_fractions(fractions: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="fractions"):
        split_by_hash(["a"], fractions)


def test_dedupe_by_each_rule() -> None:
    prompts = [
        QUESTION,
        f" {QUESTION.upper()} ",
        FOUR,
        "Which is true?\nA. snow is white\nB. grass is blue",
        "Which is true?\nA. two is odd\nB. three is odd",
        "Add 12 and 30 for me please",
        "Please add 12 and 30 for me",
        "Please add 12 and 31 for me",
    ]
    vectors = np.eye(8, dtype=np.float32)
    vectors[6] = vectors[7] = vectors[5]
    assert dedupe(prompts[:5], by_stem=False).keep.tolist() == [True, False, True, True, True]
    result = dedupe(prompts, embeddings=vectors)
    # The last shares its direction but not its numbers.
    assert result.first.tolist() == [0, 0, 0, 3, 4, 5, 5, 7]
    assert result.dropped == {"exact": 1, "stem": 1, "embedding": 1}
    assert result.keep.sum() == 5


def test_dedupe_refuses_embeddings_of_another_length() -> None:
    with pytest.raises(DataError, match="expected \\(2, dimensions\\)"):
        dedupe(["a", "b"], embeddings=np.ones((3, 4), np.float32))


def test_decontaminate_counts_by_source_set_and_rule() -> None:
    long = (
        "A farmer sells 12 baskets of apples each morning at the market in town, and twice as many "
        "on Saturday. How many baskets does he sell in a week?"
    )
    prompts = [
        f"{QUESTION}\nA. Venus\nB. Mercury\nC. Titan\nD. Ceres\nE. Io",
        FOUR.lower(),
        f"Here is some context about rural life. {long} Explain each step that you take.",
        "Which of the following is true?\nA. Fish fly\nB. Cows swim",
        "Which of the following is true?\nA. Ice is cold\nB. Fire is wet\nC. Lead is light",
        "Write a poem about autumn",
    ]
    sources = ["one", "one", "two", "two", "two", "two"]
    against = {
        "quiz": [FOUR, "Which of the following is true?\nA. Ice is cold\nB. Fire is wet"],
        "sums": [long],
    }
    result = decontaminate(prompts, sources, against)
    assert result.keep.tolist() == [False, False, False, True, False, True]
    assert result.counts == {
        ("one", "quiz", "exact"): 1,
        ("one", "quiz", "stem"): 1,
        ("two", "quiz", "stem"): 1,
        ("two", "sums", "containment"): 1,
    }
    assert result.totals == {"one": 2, "two": 4}
    assert result.dropped == {"one": 2, "two": 2}


def test_a_generic_stem_matches_by_one_long_option() -> None:
    shared = "is work undertaken to understand how to make decisions"
    against = {"quiz": [f"Marketing research\nA. {shared}\nB. sells\nC. buys\nD. asks"]}
    prompts = [
        f"Marketing research:\nA. advertises\nB. guesses\nC. {shared}\nD. other",
        "Marketing research:\nA. advertises\nB. asks\nC. guesses\nD. other",
    ]
    assert decontaminate(prompts, ["s"] * 2, against).keep.tolist() == [False, True]


def test_shared_phrasing_is_no_contamination() -> None:
    against = {"quiz": ["Which of the following is an example of a cline?\nA. one\nB. two"]}
    prompts = ["Which of the following is an example of asexual reproduction?\nA. one\nB. two"]
    assert decontaminate(prompts, ["s"], against).keep.all()


def test_decontaminate_by_embedding_runs_on_what_is_left() -> None:
    seen: list[str] = []

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        seen.extend(texts)
        return np.array([[3.0, 0.1] if "year" in t else [0.0, 1.0] for t in texts], np.float32)

    prompts = [FOUR, "Name the planet whose year is shortest.", "Write a poem"]
    result = decontaminate(prompts, ["s"] * 3, {"quiz": [QUESTION]}, embed=embed)
    assert result.keep.tolist() == [False, False, True]
    assert result.counts == {("s", "quiz", "stem"): 1, ("s", "quiz", "embedding"): 1}
    assert sorted(seen) == sorted([QUESTION, *prompts[1:]])


def test_decontaminate_refuses_lengths_and_shapes() -> None:
    with pytest.raises(DataError, match="one for each"):
        decontaminate(["a"], [], {})
    with pytest.raises(DataError, match="dimensions"):
        decontaminate(["a"], ["s"], {"e": ["b"]}, embed=lambda texts: np.zeros(3, np.float32))


def test_empty_sides() -> None:
    assert decontaminate([], [], {"e": ["b"]}).keep.shape == (0,)
    assert decontaminate(["a"], ["s"], {"e": []}).keep.all()


@pytest.mark.no_cover  # the tests above run the same lines; tracing costs a third
@needs_data
def test_more_than_half_of_mmlu_pro_falls_out_against_mmlu() -> None:
    # Sets, in their order: a file repeats a prompt for each model.
    mmlu = list(dict.fromkeys(read_prompts(source("routellm_mmlu").path())))
    pro = list(dict.fromkeys(read_prompts(source("mmlu_pro").path())))
    result = decontaminate(pro, ["mmlu_pro"] * len(pro), {"mmlu": mmlu})
    assert len(pro) == 11_279
    # 54.3% at the time of writing. The stem alone finds them: whole prompts differ in options.
    assert 0.54 < 1 - result.keep.mean() < 0.60
    assert ("mmlu_pro", "mmlu", "exact") not in result.counts
    kept = {stem(p) for p, keep in zip(pro, result.keep, strict=True) if keep}
    ungeneric = {q.stem for q in map(parse, mmlu) if not q.generic}
    assert not kept & ungeneric


@pytest.mark.no_cover  # the tests above run the same lines; tracing costs a third
@needs_data
def test_gsm8k_inside_fusionbench_falls_out() -> None:
    gsm8k = list(dict.fromkeys(read_prompts(source("routellm_gsm8k").path())))
    fusion = list(dict.fromkeys(read_prompts(source("llmrouter_fusionbench").path())))
    result = decontaminate(fusion, ["fusionbench"] * len(fusion), {"gsm8k": gsm8k})
    # MGSM is the first 250 questions of the GSM8K test set, in another wrapping.
    assert result.dropped["fusionbench"] >= 250
    assert result.counts["fusionbench", "gsm8k", "stem"] >= 200
