"""RouteLLM's recipe as a baseline: the formula, what it drops, and what it leaves of torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.schema import Comparison, PromptScore, Row
from thriftroute.data.tables import ComparisonTable
from thriftroute.errors import TrainingError
from thriftroute.eval import metrics
from thriftroute.tests.helpers.tables import comparison_table

torch = pytest.importorskip("torch")

from thriftroute.research.routellm_mf import RouteLLMSettings, fit_routellm, fit_routellm_pair  # noqa: E402

DIM = 6
# Few rows: more and larger steps than the paper's, so that it gets anywhere.
QUICK = RouteLLMSettings(dim=16, lr=1e-2, batch=16)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def data(n: int = 200, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Embeddings, and the gain of strong: its sign is that of the first coordinate."""
    embeddings = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return embeddings, np.sign(embeddings[:, 0]).astype(np.float64)


def table_of(gain: npt.NDArray[np.float64]) -> tuple[ComparisonTable, npt.NDArray[np.bool_]]:
    """Two strong models against one weak one by `gain`, and which comparisons are ties."""
    rows: list[Row] = [
        Comparison(f"prompt {i}", strong, "w", (1 + g) / 2)
        for i, g in enumerate(gain.tolist())
        for strong in ("s1", "s2")
    ]
    return comparison_table(rows, ("s1", "s2"), ("w",)), np.repeat(gain == 0, 2)


def test_the_settings_are_the_papers() -> None:
    assert RouteLLMSettings() == RouteLLMSettings(
        dim=128, lr=3e-4, weight_decay=1e-5, batch=64, epochs=10
    )


def test_it_learns_a_separable_preference_of_many_models() -> None:
    embeddings, gain = data()
    table, tie = table_of(gain)
    fitted = fit_routellm(embeddings, table, QUICK, tie=tie)
    assert (fitted.comparisons, fitted.ties) == (400, 0)
    test, truth = data(100, seed=1)
    margins = fitted.margins(test, ["s1", "s2"], ["w"])
    assert margins.dtype == np.float64 and margins.shape == (100,)
    assert metrics.auc(margins, truth > 0) > 0.95
    # No bias: half of the space on either side of 0, as in the data.
    assert np.mean((margins > 0) == (truth > 0)) > 0.9


def test_it_learns_a_separable_preference_of_a_pair() -> None:
    embeddings, gain = data()
    fitted = fit_routellm_pair(embeddings, gain, np.zeros(200), settings=QUICK)
    test, truth = data(100, seed=1)
    assert metrics.auc(fitted.margins(test), truth > 0) > 0.95
    turned = fit_routellm_pair(embeddings, np.zeros(200), gain, settings=QUICK)
    assert metrics.auc(turned.margins(test), truth > 0) < 0.05


def test_the_margin_is_the_difference_of_the_tiers_means() -> None:
    embeddings, gain = data(40)
    table, tie = table_of(gain)
    fitted = fit_routellm(embeddings, table, QUICK, tie=tie)
    first, second = (fitted.margins(embeddings, [name], "w") for name in ("s1", "s2"))
    both = fitted.margins(embeddings, ["s1", "s2"], ["w"])
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-12)
    np.testing.assert_allclose(fitted.margins(embeddings, ["w"], ["s1", "s2"]), -both, rtol=1e-12)
    # delta_m = (v_m * w2) . (W1^T q), without a bias: u holds v_m * w2.
    hidden = embeddings.astype(np.float64) @ fitted.w1
    np.testing.assert_allclose(first, hidden @ (fitted.u[0] - fitted.u[2]).astype(float), rtol=1e-6)
    assert fitted.margins(np.zeros((1, DIM)), ["s1"], ["w"]).tolist() == [0.0]


def test_ties_are_dropped_and_tell_nothing() -> None:
    embeddings, gain = data(120)
    mixed = gain.copy()
    mixed[::3] = 0.0
    kept = mixed != 0
    fitted = fit_routellm_pair(embeddings, mixed, np.zeros(120), settings=QUICK)
    alone = fit_routellm_pair(embeddings[kept], mixed[kept], np.zeros(80), settings=QUICK)
    np.testing.assert_array_equal(fitted.margins(embeddings), alone.margins(embeddings))
    assert fitted.fitted is not None and (fitted.fitted.comparisons, fitted.fitted.ties) == (80, 40)

    table, tie = table_of(mixed)
    whole = fit_routellm(embeddings, table, QUICK, tie=tie)
    part, none = table_of(mixed[kept])
    dropped = fit_routellm(embeddings[kept], part, QUICK, tie=none)
    np.testing.assert_array_equal(whole.u, dropped.u)
    assert (whole.comparisons, whole.ties) == (160, 80)


def test_only_the_sign_of_a_difference_counts() -> None:
    embeddings, gain = data(60)
    scale = np.random.default_rng(0).uniform(0.1, 5.0, 60)
    one = fit_routellm_pair(embeddings, gain, np.zeros(60), settings=QUICK)
    other = fit_routellm_pair(embeddings, gain * scale + 7.0, np.full(60, 7.0), settings=QUICK)
    np.testing.assert_array_equal(one.margins(embeddings), other.margins(embeddings))


def test_labels_of_ties_alone_teach_nothing_and_of_one_class_are_no_error() -> None:
    embeddings, _ = data(30)
    nothing = fit_routellm_pair(embeddings, np.ones(30), np.ones(30))
    assert nothing.fitted is None
    assert nothing.margins(embeddings[:4]).tolist() == [0.0] * 4
    one_class = fit_routellm_pair(embeddings, np.ones(30), np.zeros(30))
    assert np.isfinite(one_class.margins(embeddings)).all()


def test_one_seed_one_result_and_torch_stays_as_it_was() -> None:
    embeddings, gain = data(80)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (
        fit_routellm_pair(embeddings, gain, np.zeros(80), seed).margins(embeddings)
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert torch.get_num_threads() == 2
    assert torch.equal(state, torch.get_rng_state())


def test_threads_come_back_after_an_error() -> None:
    embeddings, gain = data(80)
    with pytest.raises(TrainingError, match="learning rate"):
        fit_routellm_pair(
            embeddings, gain, np.zeros(80), settings=RouteLLMSettings(lr=float("inf"))
        )
    assert torch.get_num_threads() == 2


def test_a_table_with_ties_wants_to_be_told_which() -> None:
    embeddings, _ = data(2)
    rows = [
        PromptScore(prompt, model, score)
        for prompt, of_models in (("a", (1.0, 0.0)), ("b", (0.0, 0.0)))
        for model, score in zip(("s", "w"), of_models, strict=True)
    ]
    table = comparison_table(rows, "s", "w")
    with pytest.raises(TrainingError, match=r"holds ties \(comparison 1 .*tie="):
        fit_routellm(embeddings, table)
    assert fit_routellm(embeddings, table, tie=np.array([False, True])).ties == 1
    won = comparison_table(rows[:2], "s", "w")
    assert fit_routellm(embeddings[:1], won).comparisons == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tie": np.zeros(3, bool)}, "one for each"),
        ({"embeddings": np.ones((3, DIM))}, "one for each"),
        ({"tie": np.array([False, True, False, False])}, "comparison 1 is marked as a tie"),
        ({"tie": np.ones(4, bool), "gain": np.zeros(2)}, "no comparison is left"),
        ({"embeddings": np.full((2, DIM), np.nan)}, "finite"),
        ({"embeddings": np.ones(2)}, r"expected \[n, dim\]"),
    ],
)
def test_what_does_not_fit_together_says_so(changes: dict[str, Any], says: str) -> None:
    table, tie = table_of(changes.pop("gain", np.ones(2)))
    embeddings = changes.pop("embeddings", np.ones((2, DIM)))
    with pytest.raises(TrainingError, match=says):
        fit_routellm(embeddings, table, QUICK, **{"tie": tie, **changes})


def test_a_fitted_rival_says_what_it_does_not_know() -> None:
    embeddings, gain = data(20)
    table, tie = table_of(gain)
    fitted = fit_routellm(embeddings, table, QUICK, tie=tie)
    with pytest.raises(TrainingError, match="gpt-9 not in its training data; it knows s1, s2, w"):
        fitted.margins(embeddings, ["gpt-9"], ["w"])
    with pytest.raises(TrainingError, match="at least one"):
        fitted.margins(embeddings, [], ["w"])
    with pytest.raises(TrainingError, match=r"expected \[n, 6\]"):
        fitted.margins(np.ones((2, 3)), ["s1"], ["w"])


def test_scores_of_a_pair_that_do_not_fit_say_so() -> None:
    embeddings, gain = data(4)
    with pytest.raises(TrainingError, match="one of each"):
        fit_routellm_pair(embeddings, gain, gain[:3])
    with pytest.raises(TrainingError, match="finite"):
        fit_routellm_pair(embeddings, [1.0, np.nan, 0.0, 1.0], gain)
