"""Text to score: the only place that runs ONNX, one class for mf, bert and bare encoders.

Each prompt is a run of its own, never padded into a batch: int8 activations are quantized with one
scale for a whole input, so a prompt's score would otherwise depend on its neighbours, and on one
core a batch of unpadded single runs is no slower. Many prompts are spread over threads instead.
"""

import copy
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

from ..errors import BundleFormatError, CalibrationError, ConfigError
from .bundle import EMBEDDING, MODEL, TOKENIZER, Bundle, Manifest
from .features import features
from .graph import part_of
from .text import Conversation, Encoded, Promptlike, as_conversation, encode, validate_context
from .threshold import calibration
from .tokenizing import ids_by_word, load_tokenizer, token_ids

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Prompt = Promptlike | Conversation
# So many prompts are given to the threads at once: an interrupt waits for them, not for a million.
BLOCK = 256
_SCORES = ["quality"]  # the output that scores are made of


@dataclass(frozen=True, slots=True)
class Encoding:
    """One prompt through the graph: `quality` float32[n_models], `embedding` float32[dim]."""

    quality: Floats32
    embedding: Floats32


class Scorer:
    """A verified bundle, loaded. Safe to share between threads.

    A score is the calibrated probability, in (0, 1), that the strong model's answer is preferred;
    ties count for the weak model. What takes many prompts takes `workers`, threads, by default as
    many as there are cores.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        context: str = "conversation",
        strong: str | None = None,
        weak: str | None = None,
    ) -> None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ConfigError(f"threads: expected a whole number >= 1, got {threads!r}")
        manifest = bundle.manifest
        self.bundle = bundle
        self.context = validate_context(context)
        self.strong, self.weak = strong or manifest.strong, weak or manifest.weak
        self._strong = self._weak = -1
        if manifest.models:
            self._strong, self._weak = self._pair()
        self._threads = threads
        # Most users ask for scores alone: all else is loaded where it is asked for.
        self._whole: ort.InferenceSession | None = None
        self._second: ort.InferenceSession | None = None
        self._loading = threading.Lock()
        graph = bundle.graph()
        # Of more than half its weights would be there twice.
        if (part := part_of(graph, _SCORES, 0.5)) is not None:
            self._session = _session(bundle, MODEL, threads, part, _SCORES)
        else:
            self._session = self._whole = _session(bundle, MODEL, threads, graph)
        if EMBEDDING in manifest.files:
            bundle.graph(EMBEDDING)
        try:
            self._tokenizer: Tokenizer = load_tokenizer(bundle.file(TOKENIZER).read_bytes())
            self._ids_of = ids_by_word(self._tokenizer)
        except ValueError as error:
            raise BundleFormatError(f"{TOKENIZER} does not load: {error}", bundle.path) from error
        try:
            self._calibrate = calibration(manifest.calibration if manifest.models else None)
        except CalibrationError as error:
            raise BundleFormatError(str(error), bundle.path) from error

    @classmethod
    def load(cls, path: str | Path | Bundle, **settings: Any) -> "Scorer":
        """Verify and load a bundle.

        settings: threads, of one run of the graph; one by default, since under load several threads
        a request fight for the same cores. context, see `text`. strong, weak: names among the
        bundle's models where the pair is not the bundle's own.

        Raises BundleFormatError, BundleIntegrityError, ConfigError (a setting that does not fit).
        """
        return cls(path if isinstance(path, Bundle) else Bundle.open(path), **settings)

    def score(self, prompt: Prompt) -> float:
        """Score of one prompt or conversation. A blank one has a score too, a meaningless one."""
        return float(self.calibrated(self.margin(prompt)))

    def margin(self, prompt: Prompt) -> float:
        """quality(strong) - quality(weak), in logits, before calibration."""
        if not self.bundle.manifest.models:
            raise self._no_models()
        # As `margins`, to the last bit, without the arrays of many prompts.
        [quality] = self._run(prompt, _SCORES)
        return float(quality[self._strong] - quality[self._weak])

    def scores(self, prompts: Sequence[Prompt], *, workers: int | None = None) -> Floats:
        """Scores of n prompts, float64[n]; the same to the last bit as `score` one by one."""
        return np.asarray(self.calibrated(self.margins(prompts, workers=workers)))

    def margins(self, prompts: Sequence[Prompt], *, workers: int | None = None) -> Floats:
        """Margins of n prompts, float64[n]."""
        quality = self.qualities(prompts, workers=workers)
        return (quality[:, self._strong] - quality[:, self._weak]).astype(np.float64)

    def qualities(self, prompts: Sequence[Prompt], *, workers: int | None = None) -> Floats32:
        """Qualities of the bundle's models in logits, in their order, float32[n, n_models]."""
        models = self.bundle.manifest.models
        if not models:
            raise self._no_models()
        return self._rows(prompts, "quality", len(models), workers)

    def encode_all(
        self, prompts: Sequence[Prompt], *, workers: int | None = None
    ) -> Iterator[Encoding]:
        """Quality and embedding of each prompt, in order; quality is empty for an encoder."""
        outputs = ["quality", "embedding"] if self.bundle.manifest.models else ["embedding"]
        for *quality, embedding in self._map(prompts, outputs, workers):
            yield Encoding(quality[0] if quality else np.empty(0, np.float32), embedding)

    def embeddings(self, prompts: Sequence[Prompt], *, workers: int | None = None) -> Floats32:
        """Sentence embeddings, float32[n, dim], of unit length."""
        return self._rows(prompts, "embedding", self.bundle.manifest.dim, workers)

    def representations(self, prompts: Sequence[Prompt], *, workers: int | None = None) -> Floats32:
        """What heads are fitted on, float32[n, width]; raises ConfigError where there is none."""
        width = self.bundle.manifest.width
        if not width:
            raise ConfigError(f"{self.bundle} gives no representation (a bundle of format 1?)")
        return self._rows(prompts, "representation", width, workers)

    def shortened(self, max_tokens: int) -> "Scorer":
        """The same scorer, whose graph sees at most so many tokens of a prompt."""
        manifest = self.bundle.manifest
        other = copy.copy(self)
        fewer = replace(manifest, max_tokens=min(max_tokens, manifest.max_tokens))
        other.bundle = replace(self.bundle, manifest=fewer)
        return other

    def familiarity(self, prompt: Prompt) -> float | None:
        """How like the prompts that were trained on a prompt is, 0 to 1; None where the bundle
        does not tell. Far from them (0) a score says less."""
        if "familiarity" not in {o.name for o in self._all_outputs().get_outputs()}:
            return None
        return float(self._run(prompt, ["familiarity"])[0][0])

    def token_ids(self, prompt: Prompt) -> list[int]:
        """What the graph sees of a prompt: at most `max_tokens` ids (rule: `router.text`)."""
        return self._encoded(prompt).ids

    def count_tokens(self, prompt: Promptlike) -> int:
        """Tokens of the whole text, not truncated, by the encoder's own tokenizer."""
        conversation = as_conversation(prompt)
        text = "\n".join((conversation.system, conversation.history, conversation.last))
        try:
            return len(token_ids(self._tokenizer, text))
        except ValueError as error:
            raise BundleFormatError(f"{TOKENIZER} {error}", self.bundle.path) from error

    def feeds(self, prompt: Prompt) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs for one prompt, by name."""
        encoded = self._encoded(prompt)
        ids = np.array([encoded.ids], dtype=np.int64)
        feeds: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if names := self.bundle.manifest.features:
            feeds["features"] = features(encoded.text, encoded.tokens, names)[None]
        return feeds

    def calibrated(self, margin: float | Floats) -> Any:
        """Probability for a margin or an array of margins, by the bundle's calibration."""
        return self._calibrate(margin)

    def _no_models(self) -> ConfigError:
        return ConfigError(f"{self.bundle} is an encoder: it embeds, but knows no models")

    def _pair(self) -> tuple[int, int]:
        models = self.bundle.manifest.models
        for key, name in (("strong", self.strong), ("weak", self.weak)):
            if name not in models:
                known = ", ".join(models)
                raise ConfigError(
                    f"{key} model {name!r} is not in {self.bundle}; it knows: {known}"
                )
        if self.strong == self.weak:
            raise ConfigError(f"strong and weak are both {self.strong!r} in {self.bundle}")
        return models.index(self.strong), models.index(self.weak)

    def _encoded(self, prompt: Prompt) -> Encoded:
        manifest = self.bundle.manifest
        conversation = as_conversation(prompt)
        try:
            return encode(
                conversation,
                self._ids_of,
                max_tokens=manifest.max_tokens,
                prefix=manifest.prefix_ids,
                suffix=manifest.suffix_ids,
                context=self.context,
            )
        except ValueError as error:
            raise BundleFormatError(f"{TOKENIZER} {error}", self.bundle.path) from error

    def _run(self, prompt: Prompt, outputs: list[str]) -> list[Floats32]:
        feeds = self.feeds(prompt)
        session = self._session if outputs == _SCORES else self._all_outputs()
        if "embedding" not in outputs or EMBEDDING not in self.bundle.manifest.files:
            return [output[0] for output in session.run(outputs, feeds)]
        asked = ["states" if name == "embedding" else name for name in outputs]
        found = dict(zip(asked, session.run(asked, feeds), strict=True))
        between = {"states": found["states"], "attention_mask": feeds["attention_mask"]}
        [found["embedding"]] = self._second_half().run(["embedding"], between)
        return [found[name][0] for name in outputs]

    def _all_outputs(self) -> ort.InferenceSession:
        with self._loading:
            if self._whole is None:
                self._whole = _session(self.bundle, MODEL, self._threads)
            return self._whole

    def _second_half(self) -> ort.InferenceSession:
        with self._loading:
            if self._second is None:
                self._second = _session(self.bundle, EMBEDDING, self._threads)
            return self._second

    def _rows(
        self, prompts: Sequence[Prompt], output: str, width: int, workers: int | None
    ) -> Floats32:
        rows = [row for [row] in self._map(prompts, [output], workers)]
        return np.array(rows, dtype=np.float32).reshape(len(rows), width)

    def _map(
        self, prompts: Sequence[Prompt], outputs: list[str], workers: int | None
    ) -> Iterator[list[Floats32]]:
        run = partial(self._run, outputs=outputs)
        count = 1 if len(prompts) < 2 else workers or os.cpu_count() or 1
        if count == 1:
            yield from map(run, prompts)
            return
        with ThreadPoolExecutor(count, thread_name_prefix="thriftroute-score") as pool:
            for start in range(0, len(prompts), BLOCK):
                yield from pool.map(run, prompts[start : start + BLOCK])


def _session(
    bundle: Bundle,
    name: str,
    threads: int,
    graph: bytes | None = None,
    outputs: Sequence[str] = (),
) -> ort.InferenceSession:
    """One of a bundle's graphs, loaded and checked. graph: its bytes, where they are at hand, or a
    part of it that gives these `outputs` alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin between requests burn a core for nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Otherwise bytes that look like onnxruntime's own format are read as that, unchecked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    graph = bundle.graph(name) if graph is None else graph
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own, unrelated classes
        raise BundleFormatError(f"{name} does not load: {error}", bundle.path) from error
    # It keeps them for a change of providers, which never comes: 8 MB of fast, 17 of mf.
    session._model_bytes = None
    _check_graph(session, name, bundle, outputs)
    return session


def _check_graph(
    session: ort.InferenceSession, name: str, bundle: Bundle, only: Sequence[str]
) -> None:
    """The graph must be the one that the manifest describes: names, types and widths."""
    manifest = bundle.manifest
    wanted, outputs = _described(name, manifest)
    outputs = {each: width for each, width in outputs.items() if not only or each in only}

    def check(fits: bool, problem: str) -> None:
        if not fits:
            raise BundleFormatError(f"{name}{problem}", bundle.path)

    inputs = {node.name: node for node in session.get_inputs()}
    check(set(inputs) == set(wanted), f" has inputs {sorted(inputs)}; expected {', '.join(wanted)}")
    for node, kind in wanted.items():
        found = inputs[node].type
        check(found == kind, f": input {node!r} is {found}; expected {kind}")
    if "features" in wanted:
        known, takes = len(manifest.features), inputs["features"].shape[-1]
        check(takes == known, f" takes {takes} features, the manifest names {known}")
    if "states" in wanted:
        takes = inputs["states"].shape[-1]
        check(takes == manifest.dim, f" takes states of width {takes}, not {manifest.dim}")
    widths = {o.name: o.shape[-1] if o.shape else None for o in session.get_outputs()}
    for output, width in outputs.items():
        given = widths.get(output)
        problem = f": output {output!r} has width {given}, the manifest says {width}"
        check(given == width or (width == 0 and output in ("representation", "quality")), problem)


def _described(name: str, manifest: Manifest) -> tuple[dict[str, str], dict[str, int]]:
    """The types of a graph's inputs and the widths of its outputs, by the manifest."""
    if name == EMBEDDING:
        wanted = {"states": "tensor(float)", "attention_mask": "tensor(int64)"}
        return wanted, {"embedding": manifest.dim}
    wanted = {"input_ids": "tensor(int64)", "attention_mask": "tensor(int64)"}
    if manifest.features:
        wanted["features"] = "tensor(float)"
    last = "states" if EMBEDDING in manifest.files else "embedding"
    outputs = {"representation": manifest.width, "quality": len(manifest.models)}
    return wanted, {last: manifest.dim, **outputs}
