"""The demo, whole, with a tiny real encoder: what it makes, what it says, what it leaves alone."""

import json
from pathlib import Path

import pytest
from thriftroute.errors import ConfigError
from thriftroute.router.bundle import Bundle
from thriftroute.router.threshold import ThresholdTable

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from thriftroute.data.question_text import prompt_key
from thriftroute.testing import demo
from thriftroute.testing.demo import run_demo
from thriftroute.training.write_bundle import TrainResult

# LiteLLM silences these itself when it is imported; pytest undoes that for each test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:Warning"),
]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_whole_demo_and_again(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "demo"
    run_demo(out, with_bert=True, encoder=str(tiny_encoder))
    said = " ".join(capsys.readouterr().out.split())

    train, held_out = rows(out / "train.jsonl"), rows(out / "held-out.jsonl")
    assert len(train) + len(held_out) == 400
    assert len(held_out) > 50
    keys = [{prompt_key(str(row.get("prompt"))) for row in part if "prompt" in row}
            for part in (train, held_out)]  # fmt: skip
    assert keys[0] and not keys[0] & keys[1]

    for kind in ("mf", "bert"):
        bundle = Bundle.open(out / kind)
        assert bundle.manifest.kind == kind
        assert (bundle.manifest.strong, bundle.manifest.weak) == ("strong-sim", "weak-sim")
        assert "simulated" in bundle.file("card.md").read_text()
    assert not list(out.glob("*.run"))
    tables = Bundle.open(out / "mf").manifest.thresholds
    assert ThresholdTable.from_dict(tables["prompts.jsonl"]).n == 100

    assert (out / "report" / "held-out.png").read_bytes().startswith(b"\x89PNG")
    assert "<h1>" in (out / "report" / "report.html").read_text()
    results = json.loads((out / "report" / "results.json").read_text())["results"]
    assert {"mf", "bert", "random", "oracle", "prompt-length", "knn", "knn-in-domain"} < {
        row["router"] for row in results
    }
    assert {row["n"] for row in results} == {len(held_out)}

    assert "int8 moves scores by" in said
    assert "30% strong calls" in said
    assert "about real models they say nothing" in said
    assert said.count("Answer of ") == len(demo.PROMPTS)
    assert "What next" in said and "thriftroute train mf" in said
    assert "Route with the built-in bundle" in said

    # Again, without bert: what the demo made is replaced, and what is not its own stays.
    mine = out / "notes.txt"
    mine.write_text("mine")
    (out / "train.jsonl").write_text("torn")
    (out / "mf.run").mkdir()
    (out / "mf.run" / "state.safetensors").write_text("torn")
    run_demo(out, with_bert=False, encoder=str(tiny_encoder))
    assert not (out / "mf.run").exists()
    assert mine.read_text() == "mine"
    assert rows(out / "train.jsonl") == train
    assert not (out / "bert").exists()
    assert "bert" not in (out / "report" / "results.json").read_text()

    # And with bert on a state that cannot be read.
    capsys.readouterr()
    (out / "bert.run").mkdir()
    (out / "bert.run" / "state.safetensors").write_text("torn")
    run_demo(out, with_bert=True, encoder=str(tiny_encoder))
    assert "starts anew" in capsys.readouterr().out
    assert not (out / "bert.run").exists()
    assert Bundle.open(out / "bert").manifest.kind == "bert"


def test_a_folder_of_someone_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mf").mkdir()
    kept = tmp_path / "mf" / "model.onnx"
    kept.write_text("precious")
    with pytest.raises(ConfigError, match=r"not of an earlier demo.*--out"):
        run_demo(tmp_path, with_bert=False)
    assert kept.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mf"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(OSError, match="out"):
        run_demo(path, with_bert=False)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_training_is_kept_unless_the_demo_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    # The training is the boundary here: what an interrupt leaves behind, without the work.
    seen: list[bool] = []

    def interrupted(request: demo.TrainSettings, progress: object) -> TrainResult:
        state = request.out.with_name(request.out.name + ".run") / "state.safetensors"
        seen.append(state.exists())
        state.parent.mkdir(exist_ok=True)
        state.write_text("half way")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", interrupted)
    out = tmp_path / "demo"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, with_bert=False)
        if changed:
            (out / demo.MARKER).write_text("{torn")
    assert seen == [False, not changed]
