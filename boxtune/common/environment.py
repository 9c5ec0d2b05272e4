"""What a result depends on in addition to the code of boxtune: versions of packages, and the git revision."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("boxtune", "torch", "torchvision", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a result."""
    installed = {distribution.metadata["Name"].lower() for distribution in importlib.metadata.distributions()}
    found = {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


def git_revision(folder: Path, ignoring: tuple[str, ...] = ()) -> str | None:
    """The commit hash of `folder`, or None outside a git checkout.

    "+changes" is appended if tracked files have uncommitted changes, other than those in the paths `ignoring`.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    try:
        revision = git("rev-parse", "--verify", "--quiet", "HEAD").strip()
    except FileNotFoundError:  # git is not installed
        return None
    if not revision:
        return None
    excluded = [f":(top,exclude){name}" for name in ignoring]
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *excluded)
    return f"{revision}+changes" if changes else revision
