"""The package as it is installed: `make test` tests the wheel, with the checkout out of reach of `import tfmt`."""

import importlib.metadata
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import tfmt

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(tfmt.__file__).resolve().parent
installed = pytest.mark.skipif(not sys.flags.safe_path, reason="the checkout is tested; make test tests the wheel")


def contents(folder, pattern):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(pattern)}


@installed
def test_the_checkout_is_out_of_reach():
    code = "import tfmt; print(tfmt.__file__)"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(child.stdout.strip()).parent == PACKAGE != ROOT / "tfmt"


@installed
def test_the_wheel_holds_every_module_flagfile_template_and_the_mark_of_types():
    assert contents(PACKAGE, "*.py") == contents(ROOT / "tfmt", "*.py")
    for kind in ("html", "css", "js"):
        assert contents(PACKAGE, f"*.{kind}") == contents(ROOT / "tfmt", f"*.{kind}")
    assert contents(PACKAGE / "flagfiles", "*.flags") == contents(ROOT / "flags", "*.flags")
    assert (PACKAGE / "py.typed").exists()


@installed
def test_every_command_is_installed():
    scripts = {script.name: script.value for script in importlib.metadata.distribution("tfmt").entry_points}
    commands = [path.stem for path in (ROOT / "tfmt").glob("*.py") if "def main(" in path.read_text()]
    assert scripts == {f"tfmt-{name}": f"tfmt.{name}:main" for name in commands}


@installed
def test_the_source_distribution_holds_what_make_needs():
    with tarfile.open(ROOT / "dist" / f"tfmt-{tfmt.__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"Makefile", "constraints.txt", "constraints-lowest.txt", "ruff.toml", "LICENSE", "CITATION.cff",
                     "CHANGELOG.md", "CONTRIBUTING.md", "BUILD.md", ".ci/run", "docs/api.py", "docs/runs.md",
                     "flags/demo.flags", "notebooks/weight_change.ipynb", "tests/conftest.py"}  # fmt: skip


def test_the_citation_has_the_version():
    assert f"\nversion: {tfmt.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{tfmt.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pages_of_the_api_show_every_public_name(tmp_path):
    pytest.importorskip("pdoc")
    runpy.run_path(str(ROOT / "docs" / "api.py"))["write"](tmp_path)
    page = (tmp_path / "tfmt.html").read_text()
    assert [name for name in tfmt.__all__ if f'<section id="{name}">' not in page] == []
    assert "PydanticUndefined" not in page
