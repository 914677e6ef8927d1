"""What run.sh asks Python about an environment; standard library only, since nothing else may be there yet."""

from __future__ import annotations

import csv
import importlib.metadata
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(groups: list[str], project: Path = PROJECT) -> list[str]:
    """What pyproject.toml lists: "core" names its dependencies, anything else a dependency group."""
    content = tomllib.loads(project.read_text(encoding="utf-8"))
    listed = {"core": content["project"]["dependencies"], **content["dependency-groups"]}
    return [line for group in groups for line in listed[group]]


def lacks(wanted: list[str]) -> list[str]:
    """The requirements that the running environment does not meet, each with the version it has."""
    from packaging.requirements import Requirement

    missing = []
    for requirement in map(Requirement, wanted):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement} (has {version})")
    return missing


def mend(site: Path) -> None:
    """Forget what an interrupted pip left half installed in ``site``, so that pip installs it again.

    pip goes by the metadata folder alone: it would take a package whose files are missing or cut short for installed.
    """
    for leftover in site.glob("~*"):  # what pip was about to remove
        shutil.rmtree(leftover, ignore_errors=True)
    for metadata in site.glob("*.dist-info"):
        if not _whole(metadata):
            shutil.rmtree(metadata)


def _whole(metadata: Path) -> bool:
    """Whether pip finished (it writes INSTALLER after the files), and each file still has its recorded size."""
    if not (metadata / "INSTALLER").exists():
        return False
    try:
        with (metadata / "RECORD").open(encoding="utf-8", newline="") as record:
            sizes = [(metadata.parent / row[0], int(row[2])) for row in csv.reader(record) if row[2]]
        return all(path.stat().st_size == size for path, size in sizes)
    except (OSError, ValueError, IndexError):
        return False


def main(arguments: list[str]) -> int:
    """``requirements GROUP…`` lists them; ``lacks GROUP…`` is 1 if any is unmet; ``mend`` is 1 without a whole pip."""
    verb, *groups = arguments
    if verb == "requirements":
        print("\n".join(requirements(groups)))
    elif verb == "lacks":
        missing = lacks(requirements(groups))
        print("; ".join(missing))
        return 1 if missing else 0
    else:
        mend(Path(sysconfig.get_path("purelib")))
        importlib.metadata.version("pip")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
