"""What a result depends on beside the code: versions of packages, and the git revision."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("boxtune", "torch", "torchvision", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result; absent ones are left out."""
    installed = {distribution.metadata["Name"].lower() for distribution in importlib.metadata.distributions()}
    found = {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


def git_revision(folder: Path, besides: tuple[str, ...] = ()) -> str | None:
    """The commit, with "+changes" where the tree differs in more than `besides`; None outside a git checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False).stdout

    try:
        revision = git("rev-parse", "--verify", "--quiet", "HEAD").strip()
    except FileNotFoundError:  # no git on this machine
        return None
    excluded = [f":(top,exclude){name}" for name in besides]
    changed = revision and git("status", "--porcelain", "--untracked-files=no", "--", ":/", *excluded)
    return f"{revision}+changes" if changed else revision or None
