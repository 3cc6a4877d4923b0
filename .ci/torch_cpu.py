"""Install the CPU build of torch, at the version that pyproject's extra `dev` pins.

On Linux the public index has torch with CUDA: gigabytes that nothing here uses. pip says, from the
metadata alone, what its indexes have. A build without CUDA is taken from there (macOS, Windows,
mirrors and folders of wheels); otherwise uv takes the CPU build from PyTorch's own index, which it
knows. No hash is checked, since each index has its own builds: the version is pinned. A torch of
that version that is already there stays, of whatever build.
"""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
UV = [
    *(str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--no-deps"),
    *("--python", sys.executable, "--torch-backend", "cpu"),
]


def pinned() -> Requirement:
    """torch's pin, such as `torch==2.13.0`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = map(Requirement, project["optional-dependencies"]["dev"])
    return next(line for line in lines if line.name == "torch")


def is_there(pin: Requirement) -> bool:
    """Whether the environment has that version, of any build."""
    try:
        return Version(importlib.metadata.version("torch")) in pin.specifier
    except importlib.metadata.PackageNotFoundError:
        return False


def has_cuda(report: dict[str, Any]) -> bool:
    """Whether what pip would install on this machine (its report) is a build for CUDA."""
    metadata = [item["metadata"] for item in report["install"]]
    needs = [Requirement(line) for one in metadata for line in one.get("requires_dist", [])]
    return any("+cu" in one["version"] for one in metadata) or any(
        line.name.startswith(("nvidia", "cuda", "triton"))
        and (line.marker is None or line.marker.evaluate({"extra": ""}))
        for line in needs
    )


def main() -> None:
    """Install it where it is not there yet."""
    pin = pinned()
    if is_there(pin):
        return
    asked = [*PIP, "--dry-run", "--report", "-", str(pin)]
    report = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout)
    if not has_cuda(report):
        subprocess.run([*PIP, str(pin)], check=True)
    elif subprocess.run([*UV, str(pin)], check=False).returncode:
        sys.exit(
            f"pip's indexes have {pin} for CUDA alone, and PyTorch's own did not give the CPU "
            f"build. To go on with any build, install it and run make again:\n"
            f"  {sys.executable} -m pip install {pin}"
        )


if __name__ == "__main__":
    main()
