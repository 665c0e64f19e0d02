"""What a record says of the code that made it."""

import platform
import subprocess
from pathlib import Path

import pytest

import tfmt
from tfmt.runs.origin import git_state, onednn, processor


def git(folder, *arguments):
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", str(folder), *names, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_has_its_commit_and_whether_it_was_changed(tmp_path):
    package = tmp_path / "checkout" / "tfmt"
    package.mkdir(parents=True)
    (package / "spec.py").write_text("A = 1\n")
    assert git_state.__wrapped__(package) == (None, None)
    git(package.parent, "init", "-q")
    git(package.parent, "add", "-A")
    git(package.parent, "commit", "-qm", "first")
    commit = git(package.parent, "rev-parse", "HEAD")
    assert git_state.__wrapped__(package) == (commit, False)
    (package / "spec.py").write_text("A = 2\n")
    assert git_state.__wrapped__(package) == (commit, True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("processor\t: 0\nmodel name\t: Xeon One\nflags\t\t: fpu avx2 avx512f_x fma\n\nmodel name\t: Other\n",
         "Xeon One (avx2, fma)"),
        ("processor : 0\nFeatures : fp asimd sve\n", f"{platform.machine()} (asimd, sve)"),
        ("", platform.machine()),
    ],
)  # fmt: skip
def test_a_processor_is_told_by_name_and_by_its_wide_instructions(tmp_path, content, told):
    (tmp_path / "cpuinfo").write_text(content)
    assert processor.__wrapped__(tmp_path / "cpuinfo") == told
    assert processor.__wrapped__(tmp_path / "none") == (platform.processor() or None)


@pytest.mark.parametrize(("value", "told"), [("0", False), ("1", True), (None, None)])
def test_whether_onednn_was_asked_for(monkeypatch, value, told):
    if value is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    else:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
    assert onednn() is told


def test_it_is_this_package_that_is_asked_about():
    root = Path(tfmt.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("the wheel is tested, which has no history")
    assert git_state()[0] == git(root, "rev-parse", "HEAD")
