"""Writes the pages of the Python API from the docstrings: `make docs`, or python docs/api.py FOLDER."""

import contextlib
import sys
from pathlib import Path

import pdoc

import tfmt
from tfmt import quiet

# What one calls from Python: tfmt itself, and what the notebooks take from its rooms.
MODULES = ["tfmt", "tfmt.figures", "tfmt.results.analyses", "tfmt.results.intervals", "tfmt.runs.records"]


def write(folder: Path) -> None:
    """Writes index.html and a page a module into a folder."""
    for name in tfmt.__all__:
        getattr(tfmt, name)  # pdoc sees what was imported, and tfmt imports each name at its first use
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"tfmt {tfmt.__version__}")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):  # in the checkout pdoc asks which of two tfmt is meant
        pdoc.pdoc(*MODULES, output_directory=Path())
        for page in Path().rglob("*.html"):  # pdoc shows Pydantic's word for a field without a default
            page.write_text(page.read_text().replace("PydanticUndefined", "(required)"))


if __name__ == "__main__":
    quiet.set_verbosity(0)
    quiet.import_tensorflow(0)
    write(Path(sys.argv[1]))
