"""What a result depends on: versions and the git revision."""

import platform
import subprocess

import torch

from boxtune.common.environment import git_revision, versions


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_versions_are_those_of_the_installed_packages():
    found = versions()
    assert found["python"] == platform.python_version()
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert "transformers" in found and "pillow" not in found


def test_the_revision_tells_uncommitted_changes_of_tracked_files(tmp_path):
    assert git_revision(tmp_path) is None, "no checkout"
    git(tmp_path, "init", "--quiet")
    assert git_revision(tmp_path) is None, "no commit"
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "sub/b.txt"):
        (tmp_path / name).write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    revision = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked.txt").write_text("1")
    assert git_revision(tmp_path) == git_revision(tmp_path / "sub") == revision
    (tmp_path / "a.txt").write_text("2")
    assert git_revision(tmp_path) == git_revision(tmp_path / "sub") == f"{revision}+changes"
    assert git_revision(tmp_path / "sub", ignoring=("a.txt",)) == revision
    assert git_revision(tmp_path, ignoring=("sub",)) == f"{revision}+changes"


def test_without_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) is None
