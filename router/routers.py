"""Routers by name: `mf`, `bert` and `fast` (bundles), `random`, and those of other distributions.

A distribution adds a router through the entry-point group `thriftroute.routers`:

    [project.entry-points."thriftroute.routers"]
    mine = "my_package:MyRouter"     # called with the router's settings: MyRouter(**settings)

What it returns needs one method, `scores`; a `close()` is called if it has one.
"""

import hashlib
import logging
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, RoutingError, UnknownRouterError
from .bundle import MANIFEST, Bundle
from .text import Context, Conversation

Floats = npt.NDArray[np.float64]

RECENT = 4096  # scores that are kept, some 200 bytes each
GROUP = "thriftroute.routers"
BUNDLED = ("mf", "bert", "fast")
BUILT_IN = (*BUNDLED, "random")
CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"

# What is copied from RouteLLM's README and configuration is answered with what to do here.
ROUTELLM_ROUTERS = ("sw_ranking", "causal_llm")
ROUTELLM_SETTINGS = frozenset(
    (
        *("arena_battle_datasets", "arena_embedding_datasets", "num_tiers", "hidden_size"),
        *("text_dim", "num_models", "num_classes", "use_proj", "num_labels", "score_threshold"),
        *("special_tokens", "num_outputs", "model_type", "model_id", "flash_attention_2"),
    )
)
_SHARE = (
    "model %r: this threshold is RouteLLM's, for {} of strong calls by its own checkpoint; scores "
    "of different routers do not compare: give strong_share={} instead"
)
# Thresholds of its README -> what to say of the model's name.
ROUTELLM_THRESHOLDS = {
    **dict.fromkeys((0.11593, 0.1159, 0.116), _SHARE.format("50%%", 0.5)),
    **dict.fromkeys((0.1881028115749359, 0.18810, 0.1881), _SHARE.format("20%%", 0.2)),
}

logger = logging.getLogger(__name__)


@runtime_checkable
class Router(Protocol):
    """What scores conversations. Called from several threads at once."""

    @abstractmethod
    def scores(self, conversations: Sequence[Conversation], /) -> Floats:
        """Scores of n conversations, float64[n], each in [0, 1]: how much the strong model is
        wanted. Raise where one cannot be scored: the model that `on_error` names then answers."""


class BundleRouter:
    """Scores by a bundle. `scorer` is the `Scorer` that it was made from.

    The scores of the latest `RECENT` conversations that came one by one are kept, by their hash.
    """

    def __init__(self, path: str | Path | Bundle, **settings: Any) -> None:
        """settings, and what is raised: as of `Scorer.load`; ConfigError for an encoder too."""
        from .scorer import Scorer  # brings onnxruntime

        self.scorer = Scorer.load(path, **settings)
        if not self.scorer.bundle.manifest.models:
            raise ConfigError(f"{path} is an encoder, which embeds but cannot route; give a router")
        self._recent: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_quick(self) -> bool:
        """Whether a short prompt is scored sooner than a thread is woken."""
        return self.scorer.bundle.manifest.kind == "fast"

    def scores(self, conversations: Sequence[Conversation], /) -> Floats:
        """Scores of n conversations, float64[n], each in (0, 1)."""
        if len(conversations) == 1:
            return np.array([self.score(conversations[0])])
        return self.scorer.scores(conversations)

    def score(self, conversation: Conversation) -> float:
        """The score of one of them."""
        key = _key(conversation)
        with self._lock:
            if (kept := self._recent.get(key)) is not None:
                self._recent.move_to_end(key)
                return kept
        found = self.scorer.score(conversation)
        with self._lock:
            self._recent[key] = found
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return found


class RandomRouter:
    """Uniform scores in [0, 1): the threshold is the share of weak calls. The baseline."""

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ConfigError(f"router 'random': seed must be a whole number >= 0, got {seed!r}")
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()

    def scores(self, conversations: Sequence[Conversation], /) -> Floats:
        """The next n numbers of the sequence that `seed` starts, float64[n]."""
        with self._lock:
            return self._random.random(len(conversations))


def _key(conversation: Conversation) -> bytes:
    parts = (conversation.system, conversation.history, conversation.last)
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(raw))
        digest.update(raw)
    return digest.digest()


def tables_of(router: Router) -> Mapping[str, Any]:
    """The tables of thresholds of a bundle (`Manifest.thresholds`), in their order. None of them
    for another router, or a bundle that scores another pair than its own."""
    if not isinstance(router, BundleRouter):
        return {}
    scorer, manifest = router.scorer, router.scorer.bundle.manifest
    own = (scorer.strong, scorer.weak) == (manifest.strong, manifest.weak)
    return manifest.thresholds if own else {}


def available_routers() -> tuple[str, ...]:
    """Names that `load_router` knows: the built-in ones, then those of other distributions."""
    return (*BUILT_IN, *sorted(_plugins()))


def load_router(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    threads: int = 1,
    context: Context = "conversation",
    base: Path | None = None,
) -> Router:
    """The router of that name, or the bundle in the folder of that name.

    settings: of the bundles and folders `checkpoint_path` (a bundle's folder, relative to `base`;
    the built-in one where it is not given), `strong_model` and `weak_model` (names among the
    bundle's models) and `threads`; of `random` `seed`; of others whatever they take.

    Raises UnknownRouterError, ConfigError (a folder that is not there, a setting that does not fit,
    or another distribution's router that cannot be made) and BundleError.
    """
    given = dict(settings or {})
    plugins = _plugins()
    if name == "random":
        _check_keys(name, given, ("seed",))
        return RandomRouter(**given)
    if name in ROUTELLM_ROUTERS and name not in plugins:
        raise ConfigError(
            f"router {name!r} is RouteLLM's and does not exist here; use 'mf', 'bert' or 'fast', "
            "with strong_share instead of its thresholds"
        )
    if name in BUNDLED or (name not in plugins and _is_path(name)):
        _check_keys(name, given, ("checkpoint_path", "strong_model", "weak_model", "threads"))
        return BundleRouter(
            _bundle(name, given.get("checkpoint_path"), base),
            strong=given.get("strong_model"),
            weak=given.get("weak_model"),
            threads=given.get("threads", threads),
            context=context,
        )
    if name not in plugins:
        raise UnknownRouterError(name, (*BUILT_IN, *sorted(plugins)))
    return _plugin_router(name, plugins[name], given)


def checked_scores(values: object, n: int) -> Floats:
    """What a router returned for n conversations, as float64[n].

    Raises RoutingError where it has another shape, or a score is NaN or outside [0, 1]. The
    message names no more than shapes and numbers.
    """
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise RoutingError(f"the router returned {type(values).__name__}, not numbers") from None
    if scores.shape != (n,):
        raise RoutingError(f"the router returned shape {scores.shape}, expected ({n},)")
    wrong = np.flatnonzero(~((scores >= 0.0) & (scores <= 1.0)))
    if wrong.size:
        raise RoutingError(f"the router returned {scores[wrong[0]]}, which is not in [0, 1]")
    return scores


def _is_path(name: str) -> bool:
    return (
        name[:1] in (".", "~") or any(c in name for c in "/\\") or (Path(name) / MANIFEST).is_file()
    )


def _bundle(name: str, given: object, base: Path | None) -> Bundle:
    folder = CHECKPOINTS / name if name in BUNDLED else Path(name).expanduser()
    if given is not None:
        if not isinstance(given, str | Path):
            raise ConfigError(
                f"router {name!r}: checkpoint_path must be a folder, got {type(given).__name__}"
            )
        folder = (base or Path()) / Path(given).expanduser()
    if given is None and not folder.is_dir():
        raise ConfigError(f"router {name!r}: no such folder: {folder.absolute()}")
    if not folder.is_dir():
        raise ConfigError(
            f"router {name!r}: checkpoint_path {str(given)!r} is no folder. Checkpoints "
            "of RouteLLM and other names of the Hugging Face hub cannot be loaded: leave "
            "checkpoint_path out for the built-in bundle, or give the folder that "
            "`thriftroute train` wrote"
        )
    bundle = Bundle.open(folder)
    kind = bundle.manifest.kind
    if name in BUNDLED and kind != name:
        raise ConfigError(
            f"router {name!r}: the bundle in {folder} is of kind {kind!r}; load it as router "
            f"{kind!r}, or by its folder"
        )
    return bundle


def _plugin_router(
    name: str, found: Sequence[metadata.EntryPoint], settings: Mapping[str, Any]
) -> Router:
    if len(found) > 1:
        owners = ", ".join(sorted(_owner(entry) for entry in found))
        raise ConfigError(f"router {name!r} is offered by more than one distribution: {owners}")
    entry = found[0]
    whose = f"router {name!r} of {_owner(entry)} ({entry.value})"
    try:
        router = entry.load()(**settings)
    except Exception as error:
        raise ConfigError(
            f"{whose} cannot be made with settings {sorted(settings)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(router, Router):
        raise ConfigError(f"{whose} has no method scores()")
    return router


def _plugins() -> dict[str, list[metadata.EntryPoint]]:
    """Entry points of the group by name; those that take a built-in's name are left out, aloud."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=GROUP):
        if entry.name in BUILT_IN:
            logger.warning(
                "%s offers a router named %r, which is built in: the built-in one is used",
                _owner(entry),
                entry.name,
            )
            continue
        same = found.setdefault(entry.name, [])
        if all(entry.value != other.value for other in same):
            same.append(entry)
    return found


def _owner(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown distribution"


def _check_keys(name: str, settings: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in settings:
        if key in ROUTELLM_SETTINGS and key not in known and name in BUNDLED:
            raise ConfigError(
                f"router {name!r}: {key!r} is a setting of RouteLLM; leave it out: a bundle knows "
                "its own sizes and data"
            )
        if key not in known:
            raise ConfigError(
                f"router {name!r}: unknown setting {key!r}; known: threshold, strong_share, "
                f"{', '.join(known)}"
            )
