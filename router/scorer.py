"""Text to score: the only place that runs ONNX, one class for mf, bert and bare encoders.

Each prompt is a run of its own, never padded into a batch: int8 activations are quantized with one
scale for a whole input, so a prompt's score would otherwise depend on its neighbours, and on one
core a batch of unpadded single runs is no slower. Many prompts are spread over threads instead.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

from ..errors import BundleFormatError, CalibrationError, ConfigError
from .bundle import MODEL, TOKENIZER, Bundle
from .features import features
from .text import (
    Context,
    Conversation,
    Encoded,
    Promptlike,
    as_conversation,
    encode,
    validate_context,
)
from .threshold import apply_calibration
from .tokenizing import load_tokenizer, token_ids

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Encoding:
    """One prompt through the graph: `quality` float32[n_models], `embedding` float32[dim]."""

    quality: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]


class Scorer:
    """A verified bundle, loaded. Safe to share between threads.

    A score is the calibrated probability, in (0, 1), that the strong model's answer is preferred;
    ties count for the weak model.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: ort.InferenceSession,
        tokenizer: Tokenizer,
        *,
        context: Context,
        strong: str,
        weak: str,
    ) -> None:
        self.bundle = bundle
        self.context: Context = context
        self.strong = strong
        self.weak = weak
        self._session = session
        self._tokenizer = tokenizer
        models = bundle.manifest.models
        self._strong = models.index(strong) if models else -1
        self._weak = models.index(weak) if models else -1
        self._outputs = ["quality", "embedding"] if models else ["embedding"]

    @classmethod
    def load(
        cls,
        path: str | Path | Bundle,
        *,
        threads: int = 1,
        context: str = "conversation",
        strong: str | None = None,
        weak: str | None = None,
    ) -> "Scorer":
        """Verify and load a bundle.

        threads: of one run of the graph; one by default, since under load several threads a
        request fight for the same cores. strong, weak: names among the bundle's models where the
        pair is not the bundle's own.

        Raises BundleFormatError, BundleIntegrityError, ConfigError (a setting that does not fit).
        """
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ConfigError(f"threads: expected a whole number >= 1, got {threads!r}")
        bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        manifest = bundle.manifest
        pair = [strong or manifest.strong, weak or manifest.weak]
        for key, name in zip(("strong", "weak"), pair, strict=True):
            if manifest.models and name not in manifest.models:
                raise ConfigError(
                    f"{key} model {name!r} is not in {bundle}; it knows: "
                    + ", ".join(manifest.models)
                )
        if manifest.models and pair[0] == pair[1]:
            raise ConfigError(f"strong and weak are both {pair[0]!r} in {bundle}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between requests burn a core for nothing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Otherwise bytes that look like onnxruntime's own format are read as that, unchecked.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        graph = bundle.graph()
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own, unrelated classes
            raise BundleFormatError(f"{MODEL} does not load: {error}", bundle.path) from error
        try:
            tokenizer = load_tokenizer(bundle.file(TOKENIZER).read_bytes())
        except ValueError as error:
            raise BundleFormatError(f"{TOKENIZER} does not load: {error}", bundle.path) from error
        _check_graph(session, bundle)
        if manifest.models:
            try:
                apply_calibration(0.0, manifest.calibration)
            except CalibrationError as error:
                raise BundleFormatError(str(error), bundle.path) from error
        return cls(
            bundle,
            session,
            tokenizer,
            context=validate_context(context),
            strong=pair[0],
            weak=pair[1],
        )

    def score(self, prompt: Promptlike | Conversation) -> float:
        """Score of one prompt or conversation. A blank one has a score too, a meaningless one."""
        return float(self.calibrated(self.margin(prompt)))

    def margin(self, prompt: Promptlike | Conversation) -> float:
        """quality(strong) - quality(weak), in logits, before calibration."""
        self._require_models()
        quality = self._run(prompt, ["quality"])[0]
        return float(quality[self._strong] - quality[self._weak])

    def margins(
        self,
        prompts: Sequence[Promptlike | Conversation],
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """Margins of n prompts, float64[n]; see `margin`."""
        self._require_models()
        at = self._strong, self._weak
        found = self._map(prompts, ["quality"], workers, progress)
        return np.array([float(q[at[0]] - q[at[1]]) for [q] in found], dtype=np.float64)

    def scores(
        self,
        prompts: Sequence[Promptlike | Conversation],
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """Scores of n prompts, float64[n]; the same to the last bit as `score` one by one.

        workers: threads, by default as many as there are cores. progress: called with the number
        of prompts done since the last call.
        """
        margins = self.margins(prompts, workers=workers, progress=progress)
        return np.asarray(self.calibrated(margins))

    def encode_all(
        self,
        prompts: Sequence[Promptlike | Conversation],
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Iterable[Encoding]:
        """Quality and embedding of each prompt, in order; quality is empty for an encoder."""
        for outputs in self._map(prompts, self._outputs, workers, progress):
            quality = outputs[0] if len(outputs) == 2 else np.empty(0, np.float32)
            yield Encoding(quality, outputs[-1])

    def embeddings(
        self,
        prompts: Sequence[Promptlike | Conversation],
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """Sentence embeddings, float32[n, dim], of unit length."""
        rows = [e[0] for e in self._map(prompts, ["embedding"], workers, progress)]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.bundle.manifest.dim)

    def representations(
        self,
        prompts: Sequence[Promptlike | Conversation],
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """What heads are fitted on, float32[n, width]; raises ConfigError where there is none."""
        width = self.bundle.manifest.width
        if not width:
            raise ConfigError(f"{self.bundle} gives no representation (a bundle of format 1?)")
        rows = [e[0] for e in self._map(prompts, ["representation"], workers, progress)]
        return np.array(rows, dtype=np.float32).reshape(len(rows), width)

    def familiarity(self, prompt: Promptlike | Conversation) -> float | None:
        """How like the prompts that were trained on a prompt is, 0 to 1; None where the bundle
        does not tell. Far from them (0) a score says less."""
        if "familiarity" not in {o.name for o in self._session.get_outputs()}:
            return None
        return float(self._run(prompt, ["familiarity"])[0][0])

    def token_ids(self, prompt: Promptlike | Conversation) -> list[int]:
        """What the graph sees of a prompt: at most `max_tokens` ids (rule: `router.text`)."""
        return self._encoded(prompt).ids

    def feeds(self, prompt: Promptlike | Conversation) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs for one prompt, by name."""
        encoded = self._encoded(prompt)
        ids = np.array([encoded.ids], dtype=np.int64)
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
        }
        names = self.bundle.manifest.features
        if names:
            feeds["features"] = features(encoded.text, encoded.tokens, names)[None]
        return feeds

    def _encoded(self, prompt: Promptlike | Conversation) -> Encoded:
        manifest = self.bundle.manifest
        conversation = as_conversation(prompt)
        try:
            return encode(
                conversation,
                self._tokenizer,
                max_tokens=manifest.max_tokens,
                prefix=manifest.prefix_ids,
                suffix=manifest.suffix_ids,
                context=self.context,
            )
        except ValueError as error:
            raise BundleFormatError(f"{TOKENIZER} {error}", self.bundle.path) from error

    def count_tokens(self, prompt: Promptlike) -> int:
        """Tokens of the whole text, not truncated, by the encoder's own tokenizer."""
        conversation = as_conversation(prompt)
        text = "\n".join((conversation.system, conversation.history, conversation.last))
        try:
            return len(token_ids(self._tokenizer, text))
        except ValueError as error:
            raise BundleFormatError(f"{TOKENIZER} {error}", self.bundle.path) from error

    def calibrated(self, margin: float | Floats) -> Any:
        """Probability for a margin or an array of margins, by the bundle's calibration."""
        return apply_calibration(margin, self.bundle.manifest.calibration)

    def _require_models(self) -> None:
        if not self.bundle.manifest.models:
            raise ConfigError(f"{self.bundle} is an encoder: it embeds, but knows no models")

    def _run(
        self, prompt: Promptlike | Conversation, outputs: list[str]
    ) -> list[npt.NDArray[np.float32]]:
        return [output[0] for output in self._session.run(outputs, self.feeds(prompt))]

    def _map(
        self,
        prompts: Sequence[Promptlike | Conversation],
        outputs: list[str],
        workers: int | None,
        progress: Progress | None,
    ) -> Iterable[list[npt.NDArray[np.float32]]]:
        run = partial(self._run, outputs=outputs)
        count = workers or os.cpu_count() or 1
        if count == 1 or len(prompts) < 2:
            for prompt in prompts:
                yield run(prompt)
                if progress:
                    progress(1)
            return
        with ThreadPoolExecutor(count, thread_name_prefix="thriftroute-score") as pool:
            # In blocks, so that an interrupt waits for a few prompts and not for a million.
            for start in range(0, len(prompts), 256):
                block = prompts[start : start + 256]
                yield from pool.map(run, block)
                if progress:
                    progress(len(block))


def _check_graph(session: ort.InferenceSession, bundle: Bundle) -> None:
    """The graph must be the one that the manifest describes: names and widths."""
    manifest = bundle.manifest
    wanted_inputs = {"input_ids": "tensor(int64)", "attention_mask": "tensor(int64)"}
    if manifest.features:
        wanted_inputs["features"] = "tensor(float)"
    inputs = {i.name for i in session.get_inputs()}
    if inputs != set(wanted_inputs):
        raise BundleFormatError(
            f"{MODEL} has inputs {sorted(inputs)}; expected {', '.join(wanted_inputs)}",
            bundle.path,
        )
    for node in session.get_inputs():
        expected = wanted_inputs[node.name]
        if node.type != expected:
            raise BundleFormatError(
                f"{MODEL}: input {node.name!r} is {node.type}; expected {expected}", bundle.path
            )
        if node.name == "features" and node.shape[-1] != len(manifest.features):
            raise BundleFormatError(
                f"{MODEL} takes {node.shape[-1]} features, the manifest names "
                f"{len(manifest.features)}",
                bundle.path,
            )
    widths = {o.name: o.shape[-1] if o.shape else None for o in session.get_outputs()}
    wanted = {"embedding": manifest.dim}
    if manifest.width:
        wanted["representation"] = manifest.width
    if manifest.models:
        wanted["quality"] = len(manifest.models)
    for name, width in wanted.items():
        if widths.get(name) != width:
            raise BundleFormatError(
                f"{MODEL}: output {name!r} has width {widths.get(name)}, the manifest says {width}",
                bundle.path,
            )
