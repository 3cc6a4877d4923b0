"""What set-up, CI and the image install: the locks, and which build of torch."""

import importlib.util
import platform
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import thriftroute
from packaging.requirements import Requirement

ROOT = Path(thriftroute.__file__).resolve().parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
MAIN, IMAGE = "requirements.lock", "deploy/requirements.lock"
LOCKS = {MAIN: ["dev"], IMAGE: ["serve", "postgres", "otel"]}


def locked(name: str) -> dict[str, set[str]]:
    """Requirement, with its marker -> its hashes, of a lock."""
    found: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / name).read_text(encoding="utf-8").strip()):
        if not entry.startswith("#"):
            line, *hashes = re.split(r" \\\n\s+", entry)
            found[line] = set(hashes)
    return found


def wanted(extras: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for with those extras, and to build."""
    lines = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    left = list(extras)
    while left:
        for line in EXTRAS[left.pop()]:
            one = Requirement(line)
            if one.name == "thriftroute":
                left += one.extras
            else:
                lines.append(line)
    return [one for one in map(Requirement, lines) if one.name != "torch"]


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_fits_what_pyproject_asks_for(name: str) -> None:
    pins = [Requirement(line) for line in locked(name)]
    for one in wanted(LOCKS[name]):
        versions = [str(pin.specifier)[2:] for pin in pins if pin.name == one.name.lower()]
        assert versions, f"{name} lacks {one}: make lock UPGRADE="
        assert all(one.specifier.contains(v, prereleases=True) for v in versions), one


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_a_pin_and_hashes_and_none_is_of_cuda(name: str) -> None:
    entries = locked(name)
    assert len(entries) > 50
    for line, hashes in entries.items():
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==[^ ]+( ; .+)?$", line), line
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), line
        assert not re.match(r"torch=|nvidia|cuda|triton", line), line


def test_the_image_has_the_versions_that_are_tested() -> None:
    tested = {line.split(" ;")[0]: hashes for line, hashes in locked(MAIN).items()}
    for line, hashes in locked(IMAGE).items():
        assert tested[line.split(" ;")[0]] == hashes


def test_the_group_build_is_the_build_backend() -> None:
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]


@pytest.fixture(scope="module")
def torch_cpu() -> ModuleType:
    path = ROOT / ".ci" / "torch_cpu.py"
    spec = importlib.util.spec_from_file_location("torch_cpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(version: str, *needs: str) -> dict[str, Any]:
    """The part of pip's report that is read."""
    return {"install": [{"metadata": {"version": version, "requires_dist": list(needs)}}]}


# As pip 26.3 reported them of torch 2.13.0: of the public index on Linux, and of a CPU build.
COMMON = ("filelock", "setuptools>=77.0.3", 'optree>=0.13.0; extra == "optree"')
HERE = platform.system()
PUBLIC = report(
    "2.13.0",
    *COMMON,
    "cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]"
    f'==13.0.3; platform_system == "{HERE}"',
    f'nvidia-cudnn-cu13==9.20.0.48; platform_system == "{HERE}"',
    f'triton==3.7.1; platform_system == "{HERE}" and python_version < "3.15"',
)
CPU = report("2.13.0+cpu", *COMMON)


@pytest.mark.parametrize(
    ("found", "cuda"),
    [
        (PUBLIC, True),
        (CPU, False),
        # The same line of another machine, where the marker does not hold.
        (report("2.13.0", *COMMON, 'nvidia-cudnn-cu13==9; platform_system == "Other"'), False),
        (report("2.13.0", "triton==3.7.1"), True),
        (report("2.13.0+cu130", *COMMON), True),
        ({"install": [{"metadata": {"version": "2.13.0"}}]}, False),
    ],
)
def test_a_build_for_cuda_is_known_by_its_metadata(
    torch_cpu: ModuleType, found: dict[str, Any], cuda: bool
) -> None:
    assert torch_cpu.has_cuda(found) is cuda


def test_torch_is_pinned_where_the_script_looks(torch_cpu: ModuleType) -> None:
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", str(torch_cpu.pinned()))
