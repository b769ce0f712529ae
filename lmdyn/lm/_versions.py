"""Whether transformers and trl are of a version that lmdyn works with."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

RANGES = {"transformers": ">=5.4", "trl": ">=1.16,<2"}  # as in pyproject.toml


def out_of_range(package: str) -> str | None:
    """What is wrong with the version of a package and what to do, or None."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return None
    if SpecifierSet(RANGES[package]).contains(found, prereleases=True):
        return None
    return (
        f"{package} {found} is out of range: lmdyn works with {package}{RANGES[package]}, so "
        f"pip install '{package}{RANGES[package]}'"
    )
