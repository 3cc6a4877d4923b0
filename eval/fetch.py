"""Files of a benchmark: from a local folder of Parquet files, or a pinned commit of a repository.

Nothing is downloaded unless a benchmark is asked for by name and THRIFTROUTE_DATA is unset.
"""

import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ..errors import EvaluationError
from ..files import cache_folder, whole_file

# The last commit of lm-sys/RouteLLM, so the last version of every file below routellm/evals/.
COMMIT = "0b64fdafe049e596a3f5657c219329f24af24198"
BASE_URL = "https://raw.githubusercontent.com/lm-sys/RouteLLM"
# The largest file, judgements.jsonl, has 1.5 MB.
MAX_BYTES = 32 * 1024 * 1024
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Files:
    """Where benchmark files come from.

    `local` is a folder of Parquet files, or None to fetch from `base_url`/COMMIT/routellm/evals/
    into `cache`/routellm/COMMIT/. A cached file is never fetched again: its commit never changes.
    """

    local: Path | None
    cache: Path
    base_url: str = BASE_URL
    max_bytes: int = MAX_BYTES

    @classmethod
    def from_environment(cls) -> "Files":
        """`local` from THRIFTROUTE_DATA; the base of the URL from THRIFTROUTE_BENCHMARK_URL."""
        local = os.environ.get("THRIFTROUTE_DATA")
        url = os.environ.get("THRIFTROUTE_BENCHMARK_URL") or BASE_URL
        return cls(Path(local) if local else None, cache_folder(), url)

    def parquet(self, name: str) -> Path:
        """A file of the local folder. Raises EvaluationError where it is not there."""
        if self.local is None:
            raise EvaluationError(f"no local folder to read {name} from; set THRIFTROUTE_DATA")
        path = self.local / name
        if not path.is_file():
            raise EvaluationError(
                f"{path} does not exist; correct THRIFTROUTE_DATA, or unset it to fetch the "
                "benchmark from its public repository"
            )
        return path

    def remote(self, name: str) -> Path:
        """A file below routellm/evals/ of the repository, downloaded unless cached.

        Raises EvaluationError where there is no network, the server refuses, or the file is larger
        than `max_bytes`. A download that breaks off leaves nothing behind.
        """
        path = self.cache / "routellm" / COMMIT / name
        if path.is_file():
            return path
        if not self.base_url.startswith(("https://", "http://")):
            raise EvaluationError(f"benchmark URL {self.base_url!r} is no http(s) address")
        url = f"{self.base_url.rstrip('/')}/{COMMIT}/routellm/evals/{name}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310
                body = response.read(self.max_bytes + 1)
                expected = response.headers.get("Content-Length")
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise EvaluationError(
                f"cannot fetch {url}: {error}; with a copy of the data files, set THRIFTROUTE_DATA "
                "to its folder, or evaluate on your own data with --data"
            ) from error
        if len(body) > self.max_bytes:
            raise EvaluationError(f"{url} is larger than {self.max_bytes:,} bytes; not downloaded")
        # read(n) does not raise on a connection that closes early.
        if expected is not None and len(body) != int(expected):
            raise EvaluationError(f"{url} broke off after {len(body):,} of {expected} bytes; retry")
        with whole_file(path) as file:
            file.write(body)
        return path
