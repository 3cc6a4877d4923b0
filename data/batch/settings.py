"""What a run over a log is asked to do, and what of it does not fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, require_extra
from ...router.routers import BUNDLED, CHECKPOINTS
from ...router.text import validate_context
from .chunks import CHUNK_BYTES, CHUNK_ROWS


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Score `inputs` into `out`.

    inputs: what `logs import` wrote, or Parquet with `id` and `prompt` or `messages`; or JSONL of a
    `format` that it reads, as it is: then every request is scored, repeats too. out: a .parquet
    file, or any other name for JSONL. router: mf, bert, or a bundle's folder; strong, weak: another
    pair of its models. workers: threads; ray: actors on a Ray cluster instead ("local" starts one).
    clusters: fit as many on a sample drawn with `seed`, and write their centres to
    `<out>.centers.npy`; centers: use those of such a file instead. embeddings: float16, into
    Parquet only. skip_bad: leave bad rows out, and write where and why to `rejects`.
    """

    inputs: Sequence[str | Path]
    out: str | Path
    router: str = "mf"
    strong: str | None = None
    weak: str | None = None
    context: str = "conversation"
    format: str = "auto"
    workers: int = 1
    ray: str | None = None
    chunk_rows: int = CHUNK_ROWS
    chunk_bytes: int = CHUNK_BYTES
    embeddings: bool = False
    clusters: int | None = None
    centers: str | Path | None = None
    skip_bad: bool = False
    rejects: str | Path | None = None
    overwrite: bool = False
    seed: int = 0

    @property
    def target(self) -> Path:
        """The file of scores."""
        return Path(self.out).absolute()

    @property
    def parquet(self) -> bool:
        """Whether that is Parquet, else JSONL."""
        return self.target.suffix.lower() in (".parquet", ".pq")

    @property
    def bundle(self) -> Path:
        """The folder of the router's bundle. Raises ConfigError for a router without one."""
        if self.router in BUNDLED and not Path(self.router).exists():
            return CHECKPOINTS / self.router
        if self.router == "random":
            raise ConfigError("router 'random' reads no prompt: there is nothing to score with")
        return Path(self.router).absolute()


def check(settings: ScoreSettings) -> None:
    """Raises ConfigError or MissingExtraError for settings with which no run could end."""
    if isinstance(settings.inputs, str | Path) or not settings.inputs:
        raise ConfigError("give a list of at least one file of a log")
    for name in ("workers", "chunk_rows", "chunk_bytes", "clusters"):
        value = getattr(settings, name)
        unset = name == "clusters" and value is None
        if not unset and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}: expected a whole number >= 1, got {value!r}")
    validate_context(settings.context)
    out, folder = settings.target, settings.target.parent
    names = [Path(path).absolute() for path in settings.inputs]
    both = settings.clusters is not None and settings.centers is not None
    unasked = settings.rejects is not None and not settings.skip_bad
    there = out.exists() and not settings.overwrite
    for wrong, problem in (
        (both, "clusters are fitted or their centres are given, not both"),
        (unasked, "a file of rejects is for bad rows that are skipped: ask for that too"),
        (len(set(names)) != len(names), "a file is given twice"),
        (out.is_dir(), f"{out} is a folder; expected the name of a file"),
        (not folder.is_dir(), f"{out}: there is no folder {folder}"),
        (there, f"{out} exists already; name another file, or overwrite it"),
        (out in names, f"{out} is an input too"),
        (
            settings.embeddings and not settings.parquet,
            f"embeddings are written to Parquet only; name {out} .parquet",
        ),
    ):
        if wrong:
            raise ConfigError(problem)
    if settings.parquet:
        require_extra("pyarrow.parquet", "eval")
