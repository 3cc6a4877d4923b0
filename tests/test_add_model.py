"""A model that a bundle has never seen: its ability, its interval, and the bundle that knows it."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.data.schema import Comparison, PromptScore, Row
from thriftroute.errors import BundleError, ExportError, TrainingError
from thriftroute.router.bundle import Bundle, update_manifest, write_bundle
from thriftroute.router.features import FEATURES
from thriftroute.router.scorer import Scorer
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("sentence_transformers")

from thriftroute.training.add_model import MIN_COMPARISONS, Added, add_model
from thriftroute.training.encoder import encoder_bundle
from thriftroute.training.export import graft_head, read_head
from thriftroute.training.models.head import Gate, Head, Memory
from thriftroute.training.settings import TrainSettings
from thriftroute.training.train import train

# On its own validation prompts strong is right on 80%, weak on 40%: so far are they apart.
MEANS = {"strong_mean": 0.8, "weak_mean": 0.4}
UNIT = math.log(0.8 / 0.2) - math.log(0.4 / 0.6)
ABILITIES = {"big": 0.5, "middle": 0.1, "small": -0.5}
MODELS = list(ABILITIES)
PROMPTS = ["what is 2 + 2?", "aaa", "x 123456789 y", "prove 1+1=2 and 2+2=4"]


@pytest.fixture(scope="module")
def base(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three models on two directions: digits, and a second one behind a gate."""
    encoder, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
    manifest = encoder.manifest
    layers = manifest.width - len(FEATURES)
    random = np.random.default_rng(0)
    w1 = np.zeros((2, manifest.width), np.float32)
    w1[0, layers + FEATURES.index("digit_share")] = 2.0
    w1[1, :layers] = random.normal(size=layers)
    gate = Gate((0.5 * random.normal(size=manifest.width)).astype(np.float32), 0.1)
    memory = Memory(
        points=random.integers(-127, 128, (20, 4)).astype(np.int8),
        low=-0.5,
        high=1.5,
        columns=(layers - manifest.dim, layers),
        scale=0.005,
        projection=random.normal(size=(manifest.dim, 4)).astype(np.float32),
    )
    u = np.array([[a, 0.3 * a] for a in ABILITIES.values()], np.float32)
    b1, gated = np.array([-0.5, 0.1], np.float32), np.array([0, 1], np.int8)
    head = Head(MODELS, w1, b1, u, gated, gate, memory)
    return write_bundle(
        tmp_path_factory.mktemp("add") / "base",
        files={
            "model.onnx": graft_head(encoder.file("model.onnx").read_bytes(), head),
            "tokenizer.json": encoder.file("tokenizer.json"),
            "card.md": b"# base\n",
        },
        kind="mf",
        encoder="tiny",
        dim=manifest.dim,
        models=MODELS,
        strong="big",
        weak="small",
        max_tokens=manifest.max_tokens,
        prefix_ids=list(manifest.prefix_ids),
        suffix_ids=list(manifest.suffix_ids),
        features=list(manifest.features),
        width=manifest.width,
        calibration={"method": "platt", "a": 1.5, "b": -0.2},
        thresholds={"validation": {"n": 2, "rows": [[0.5, 0.4], [1.0, 0.2]], "name": "v"}},
        training={"validation": MEANS},
    )


Add = Callable[..., Added]


@pytest.fixture
def add(base: Bundle, tmp_path: Path) -> Add:
    """`add_model` to the base, into a folder of its own for each call."""
    calls = iter(range(1000))

    def call(rows: Iterable[Row], name: str = "new", **options: Any) -> Added:
        options = {"out": tmp_path / f"grown-{next(calls)}", **options}
        return add_model(options.pop("bundle", base), rows, name, **options)

    return call


def votes(wins: int, n: int, other: str = "small", ties: int = 0) -> list[Row]:
    """The new model wins and ties so many of n; every other row names it second."""
    shares = [1.0] * wins + [0.5] * ties + [0.0] * (n - wins - ties)
    return [
        Comparison(f"p {i}", "new", other, share) if i % 2
        else Comparison(f"p {i}", other, "new", 1 - share)
        for i, share in enumerate(shares)
    ]  # fmt: skip


def scored(columns: dict[str, Sequence[float]]) -> list[Row]:
    return [
        PromptScore(f"p {i}", model, float(score))
        for model, column in columns.items()
        for i, score in enumerate(column)
    ]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


class TestAbility:
    def test_who_wins_more_has_more_of_it(self, add: Add) -> None:
        found = [add(votes(wins, 60)) for wins in (6, 30, 42, 57)]
        abilities = [one.ability for one in found]
        assert abilities == sorted(abilities)
        assert abilities[0] < -0.5 < abilities[2]
        # As often right as the weak model: as able.
        assert abilities[1] == pytest.approx(-0.5)
        assert all(one.low < one.ability < one.high for one in found)

    def test_of_votes_by_hand(self, add: Add) -> None:
        """p of n votes are a difference of 2 logit(p), of variance 4 / (n p (1 - p))."""
        found = add(votes(30, 40))
        p = 30.5 / 41
        assert (found.name, found.comparisons) == ("new", 40)
        assert found.ability == pytest.approx(-0.5 + 2 * logit(p) / UNIT)
        half = 1.96 * math.sqrt(4 / (41 * p * (1 - p))) / UNIT
        assert (found.low, found.high) == pytest.approx(
            (found.ability - half, found.ability + half)
        )

    def test_ties_are_half_a_win_and_say_more_than_wins(self, add: Add) -> None:
        tied, won = add(votes(10, 40, ties=20)), add(votes(20, 40))
        assert tied.ability == pytest.approx(won.ability) == pytest.approx(-0.5)
        assert tied.high - tied.low < won.high - won.low

    def test_of_scores_by_hand(self, add: Add) -> None:
        """Right on 40 of 60, where middle is on 30 of 60, independently."""
        new = [1.0, 1.0, 0.0] * 20
        known = ([1.0] * 3 + [0.0] * 3) * 10
        found = add(scored({"new": new, "middle": known}))
        p, q = 40.5 / 61, 30.5 / 61
        assert found.ability == pytest.approx(0.1 + (logit(p) - logit(q)) / UNIT)
        # Of independent columns the variances add up.
        half = 1.96 * math.sqrt(1 / (61 * p * (1 - p)) + 1 / (61 * q * (1 - q))) / UNIT
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.02)

    def test_the_interval_of_votes_holds_what_is_true(self, add: Add) -> None:
        """60 samples of 80 votes, of which the new model wins six of ten in the long run."""
        truth = -0.5 + 2 * logit(0.6) / UNIT
        wins = np.random.default_rng(0).binomial(80, 0.6, 60)
        inside = {k: (f := add(votes(k, 80))).low <= truth <= f.high for k in set(wins.tolist())}
        assert 0.88 <= np.mean([inside[k] for k in wins.tolist()]) < 1

    @pytest.mark.parametrize("name", MODELS)
    def test_a_copy_of_a_known_model_is_that_model(self, add: Add, name: str) -> None:
        hard = np.random.default_rng(0).random(60)
        columns = {model: (hard < 0.5 + 0.4 * a) * 1.0 for model, a in ABILITIES.items()}
        found = add(scored({**columns, "new": columns[name]}))
        assert found.comparisons == 180
        assert found.ability == pytest.approx(ABILITIES[name], abs=0.1)
        assert found.low <= ABILITIES[name] <= found.high

    def test_a_model_of_the_same_strength_with_luck_of_its_own(self, add: Add) -> None:
        inside = []
        for seed in range(10):
            random = np.random.default_rng(seed)
            chance = {"big": 0.8, "middle": 0.65, "small": 0.4, "new": 0.65}
            found = add(scored({m: (random.random(50) < p) * 1.0 for m, p in chance.items()}))
            inside.append(found.low <= ABILITIES["middle"] <= found.high)
        assert sum(inside) >= 8

    def test_a_clean_sweep_is_finite(self, add: Add) -> None:
        best, worst = add(votes(20, 20)), add(votes(0, 20))
        assert best.ability > 0.5
        assert worst.ability < -1.0
        for one in (best, worst):
            assert math.isfinite(one.low) and math.isfinite(one.high)
            assert one.high - one.low > 1.0

    def test_known_models_are_weighed_by_what_they_tell(self, add: Add) -> None:
        """200 votes against one, 20 against another that contradict them."""
        many, few = votes(100, 200, "small"), votes(20, 20, "big")
        together = add([*many, *few])
        assert together.comparisons == 220
        assert add(many).ability < together.ability < add(few).ability
        assert together.ability == pytest.approx(add(many).ability, abs=0.15)
        # Not narrower than by the one that tells most alone.
        assert together.high - together.low == pytest.approx(add(many).high - add(many).low)

    def test_rows_that_say_nothing_of_it_are_passed_over(self, add: Add) -> None:
        rows = votes(30, 40)
        other: list[Row] = [
            Comparison("q", "big", "small", 1.0),
            Comparison("q", "new", "stranger", 1.0),
            PromptScore("q", "stranger", 1.0),
            PromptScore("alone", "new", 1.0),
            PromptScore("without", "big", 0.0),
        ]
        plain, mixed = add(rows), add([*other, *rows])
        assert (mixed.ability, mixed.comparisons) == (plain.ability, 40)

    def test_votes_and_scores_together(self, add: Add) -> None:
        columns = {"new": [1.0, 1.0, 0.0] * 10, "small": [1.0, 0.0, 0.0] * 10}
        assert add([*votes(15, 20), *scored(columns)]).comparisons == 50

    def test_items_that_share_a_prompt_are_not_mixed(self, add: Add) -> None:
        rows = [
            PromptScore("the same", model, score, item=str(i))
            for i in range(30)
            for model, score in (("new", 1.0 - i % 2), ("small", 1.0 - i % 2))
        ]
        found = add(rows)
        assert found.comparisons == 30
        assert found.ability == pytest.approx(-0.5)


class TestBundle:
    def test_it_knows_the_model_and_routes_with_it(self, add: Add, base: Bundle) -> None:
        found = add(votes(50, 60))
        before, after = Scorer.load(base), Scorer.load(found.bundle.path)
        assert after.bundle.manifest.models == (*MODELS, "new")
        new = Scorer.load(found.bundle.path, strong="new", weak="small")
        for prompt in PROMPTS:
            # Its margin over the weak model is the pair's own, as far as they are apart.
            expected = (found.ability + 0.5) * before.margin(prompt)
            assert new.margin(prompt) == pytest.approx(expected, abs=1e-4)
            assert after.margin(prompt) == pytest.approx(before.margin(prompt), abs=1e-5)
            familiar = before.familiarity(prompt)
            assert familiar is not None and 0 < familiar < 1
            assert after.familiarity(prompt) == pytest.approx(familiar, abs=1e-6)
        assert np.ptp([new.margin(prompt) for prompt in PROMPTS]) > 0.1

    def test_all_else_stays(self, add: Add, base: Bundle) -> None:
        grown = add(votes(50, 60)).bundle
        assert grown.file("tokenizer.json").read_bytes() == base.file("tokenizer.json").read_bytes()
        card, before = grown.file("card.md").read_text(), base.file("card.md").read_text()
        assert card.startswith(before)
        assert "`new`, ability" in card[len(before) :]
        assert "60 comparisons" in card[len(before) :]
        changed = {
            name
            for name in ("kind", "encoder", "dim", "strong", "weak", "max_tokens", "prefix_ids",
                         "suffix_ids", "features", "width", "calibration", "thresholds", "training")
            if getattr(grown.manifest, name) != getattr(base.manifest, name)
        }  # fmt: skip
        assert not changed
        one, two = (
            read_head(b.file("model.onnx").read_bytes(), b.manifest.models) for b in (base, grown)
        )
        np.testing.assert_array_equal(two.w1, one.w1)
        np.testing.assert_array_equal(two.u[:3], one.u)
        assert two.gated.tolist() == [0, 1]

    def test_one_after_another(self, add: Add) -> None:
        first = add(votes(50, 60))
        rows = [Comparison(f"p {i}", "newer", "new", 1.0 - i % 2) for i in range(40)]
        second = add(rows, "newer", bundle=first.bundle)
        assert second.bundle.manifest.models == (*MODELS, "new", "newer")
        assert second.ability == pytest.approx(first.ability, abs=1e-6)

    def test_to_a_bundle_of_ones_own(self, tiny_base: Path, add: Add, tmp_path: Path) -> None:
        """One that `train` wrote knows by itself how far its models are apart."""
        random = np.random.default_rng(0)
        rows = [
            {"prompt": f"{'1' if i % 2 else 'a'} {i}", "model": model,
             "score": float(random.random() < p)}
            for i in range(80)
            for model, p in (("m", 0.9), ("n", 0.9 - 0.7 * (i % 2)))
        ]  # fmt: skip
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        request = TrainSettings(
            "mf", [str(tmp_path / "d.jsonl")], ("m",), ("n",), tmp_path / "own", base=str(tiny_base)
        )
        bundle = train(request).bundle
        found = add(votes(20, 40, "n"), bundle=bundle)
        assert found.ability == pytest.approx(-0.5)
        assert found.bundle.manifest.models == ("m", "n", "new")
        means = bundle.manifest.training["validation"]
        unit = logit(means["strong_mean"]) - logit(means["weak_mean"])
        more = add(votes(30, 40, "n"), bundle=bundle)
        assert more.ability == pytest.approx(-0.5 + 2 * logit(30.5 / 41) / unit)


class TestErrors:
    def test_a_name_that_is_known(self, add: Add, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match=r"knows 'middle' already"):
            add(votes(30, 40), "middle", out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("n", [0, MIN_COMPARISONS - 1])
    def test_too_few_comparisons(self, add: Add, n: int, tmp_path: Path) -> None:
        told = rf"{n} comparisons of 'new'.*at least {MIN_COMPARISONS}.*big, middle, small"
        with pytest.raises(TrainingError, match=told):
            add(votes(n // 2, n), out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert add(votes(10, MIN_COMPARISONS)).comparisons == MIN_COMPARISONS

    def test_a_bundle_without_a_head(self, tiny_bundle: Path, add: Add) -> None:
        with pytest.raises(ExportError, match="no mf head"):
            add(votes(30, 40), bundle=Bundle.open(tiny_bundle))

    @pytest.mark.parametrize(
        "training",
        [{}, {"validation": {"strong_mean": 0.8}},
         {"validation": {"strong_mean": 0.4, "weak_mean": 0.4}}],
    )  # fmt: skip
    def test_a_bundle_that_does_not_say_how_far_its_models_are_apart(
        self, add: Add, training: dict[str, Any]
    ) -> None:
        copied = update_manifest(add(votes(30, 40)).bundle, training=training)
        rows = [Comparison(f"p {i}", "newer", "small", 1.0) for i in range(30)]
        with pytest.raises(TrainingError, match=r"does not tell how far.*train it again"):
            add(rows, "newer", bundle=copied)

    def test_a_folder_that_is_taken(self, add: Add, tmp_path: Path) -> None:
        out = tmp_path / "out"
        first = add(votes(10, 40), out=out)
        with pytest.raises(BundleError, match="exists already"):
            add(votes(30, 40), out=out)
        assert add(votes(30, 40), out=out, overwrite=True).ability > first.ability
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("dear")
        with pytest.raises(BundleError, match="not a bundle"):
            add(votes(30, 40), out=tmp_path / "mine", overwrite=True)
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


class TestCommand:
    @pytest.fixture
    def args(self, base: Bundle, tmp_path: Path) -> list[str]:
        rows = [
            {"prompt": row.prompt, "model_a": row.model_a, "model_b": row.model_b,
             "score_a": row.score_a}
            for row in votes(30, 40) if isinstance(row, Comparison)
        ]  # fmt: skip
        file = tmp_path / "votes.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [
            "add-model", "new", "--data", str(file), "--router", str(base.path),
            "--out", str(tmp_path / "grown"),
        ]  # fmt: skip

    def test_json_for_programs(self, args: list[str], tmp_path: Path) -> None:
        result = CliRunner().invoke(app, [*args, "--json"])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        low, high = found.pop("ability_ci")
        ability = found.pop("ability")
        assert found == {"bundle": str(tmp_path / "grown"), "model": "new", "comparisons": 40}
        assert low < ability < high
        assert ability == pytest.approx(-0.5 + 2 * logit(30.5 / 41) / UNIT)
        assert Bundle.open(tmp_path / "grown").manifest.models[-1] == "new"

    def test_a_line_for_people(self, args: list[str], tmp_path: Path) -> None:
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 0, result.output
        ability = -0.5 + 2 * logit(30.5 / 41) / UNIT
        assert f"wrote {tmp_path / 'grown'}: new has ability {ability:+.2f} [" in result.stdout
        assert "from 40 comparisons" in result.stdout
        again = CliRunner().invoke(app, args)
        assert (again.exit_code, "exists already" in again.stderr) == (1, True)
        assert CliRunner().invoke(app, [*args, "--overwrite"]).exit_code == 0

    @pytest.mark.parametrize(
        ("changes", "status", "told"),
        [
            ({"--router": "random"}, 2, "'random' is no bundle"),
            ({"--router": "nosuch"}, 2, "'nosuch'"),
            ({"--data": "missing.jsonl"}, 1, "missing.jsonl"),
        ],
    )
    def test_what_does_not_fit(
        self, args: list[str], changes: dict[str, str], status: int, told: str, tmp_path: Path
    ) -> None:
        for option, value in changes.items():
            args[args.index(option) + 1] = value
        result = CliRunner().invoke(app, args)
        assert result.exit_code == status
        assert told in result.stderr
        assert result.stderr.startswith("error: ")
        assert not (tmp_path / "grown").exists()
