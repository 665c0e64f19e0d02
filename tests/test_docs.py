"""The documentation holds: its commands parse, its links lead somewhere, the page of flags is theirs, examples run."""

import doctest
import importlib.metadata
import inspect
import re
import runpy
import shlex
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest

import tfmt
from tfmt import expressions, train
from tfmt.bert.configs import PAPER_SHAPES
from tfmt.bert.vocabulary import list_weights
from tfmt.errors import RequestError
from tfmt.flags import Asked, parse
from tfmt.selection.modes import EXPRESSIONS, write_mode
from tfmt.selection.plans import make_plan
from tfmt.spec import RunSpec
from tfmt.study.dry_run import describe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(tfmt.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
PROGRAMS = {
    script.name: script.module for script in importlib.metadata.distribution("tfmt").entry_points
    if script.group == "console_scripts"
}  # fmt: skip
ROOMS = "tfmt|docs|tests|flags|notebooks"
PLACEHOLDER = "PLACEHOLDER"
# Named in the documentation, and there in an installed tfmt alone.
INSTALLED = {"tfmt/flagfiles/"}


def test_page_of_flags_is_made_from_the_flags():
    make_page = runpy.run_path(str(ROOT / "docs" / "flags_page.py"))["make_page"]
    assert (ROOT / "docs" / "flags.md").read_text() == make_page(), "make flags-page writes it anew"


SELECTIONS = ROOT / "docs" / "selections.md"


def test_page_of_selections_holds_the_grammar():
    grammar = (PACKAGE / "expressions.lark").read_text()
    shown = "".join(line.removeprefix("    ") for line in SELECTIONS.read_text().splitlines(True))
    assert grammar in shown


def test_page_of_selections_has_every_mode_as_its_expression():
    rows = re.findall(r"^\| `(\w+)(?: --(\w+)=([\d.]+))?` \| `([^`]+)` \|", SELECTIONS.read_text(), re.MULTILINE)
    written = {mode: write_mode(mode, **({name: float(value) if "." in value else int(value)} if name else {}))
               for mode, name, value, _ in rows}  # fmt: skip
    assert {mode: expressions.write(expressions.parse(text)) for mode, text in written.items()} == {
        mode: expression for mode, _, _, expression in rows
    }
    assert set(written) == set(EXPRESSIONS)


def test_expressions_on_the_page_of_selections_select_what_it_says(monkeypatch):
    weights = list_weights(PAPER_SHAPES["bert-base-uncased"], "sentence", 2)
    whole = {weight.path: None for weight in weights if weight.sublayer == "pooler"}
    text = SELECTIONS.read_text()
    counted = re.findall(r"^\| `([^`]+)` \| [^|]+ \| (?:[\d,+ ]+= )?([\d,]+)(?: to ([\d,]+))? \|", text, re.MULTILINE)
    bounds = {}
    for expression, low, high in counted:
        bounds[expression] = make_plan(expression, weights, 12).bounds
        assert bounds[expression] == tuple(int(each.replace(",", "")) for each in (low, high or low))
    assert len(bounds) == 6
    monkeypatch.setattr("tfmt.study.dry_run.find_shape", lambda *_: PAPER_SHAPES["bert-base-uncased"])
    spec = RunSpec.make(model="none", task="mrpc", mode="custom", select="attention@0[head=3] + layernorm")
    printed = describe(spec, "runs").splitlines(True)[:12]
    assert "".join(f"    {line}" for line in printed) in text
    # Whatever looks like an expression is one; those that the page calls errors are.
    refused = set()
    for _, span in code_spans(text):
        if re.search(r"\w[@:\[]\w|\w [+&-] |^(shuffled|run|mask|var)\(", span) and not re.search(r"TERM|--|=.*=", span):
            try:
                make_plan(span, weights, 12, given=lambda *_: whole)
            except RequestError:
                refused.add(span)
    assert refused == {"embeddings@0", "layernorm[head=3]", "(attention + pooler)@0"}
    with pytest.raises(RequestError) as caught:
        make_plan("attention.qeury@3:fisher(5%)", weights, 12)
    error = f"tfmt-train: {caught.value}"
    assert "".join(f"    {line}\n" for line in error.split("\n")) in text


def code_blocks(text):
    """(line number, line) of indented and fenced code, lines that end in a backslash joined with the next."""
    fenced, joined, start = False, "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*(```|~~~)", line):
            fenced = not fenced
        elif fenced or joined or line.startswith(("    ", "\t")):
            start = start if joined else number
            joined += line.strip().removesuffix("\\")
            if not line.rstrip().endswith("\\"):
                yield start, joined
                joined = ""


def prose(text):
    """A page without its code: fenced and indented blocks and code spans are blanked."""
    text = re.sub(r"(?ms)^\s*(```|~~~).*?^\s*\1.*?$", "", text)
    return re.sub(r"`[^`\n]+`", "``", re.sub(r"(?m)^(    |\t).*$", "", text))


def code_spans(text):
    """(line number, span) of the code spans outside code blocks."""
    blocks = {number for number, _ in code_blocks(text)}
    for number, line in enumerate(text.splitlines(), 1):
        if number not in blocks:
            for span in re.findall(r"`([^`]+)`", line):
                yield number, span


def commands(line):
    """The calls of tfmt's programs and of make in a line of shell, as lists of words."""
    line = re.sub(r"<[^<>]*>", PLACEHOLDER, line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call: list[str] = []
    try:
        words = [*lexer, ";"]
    except ValueError:  # no shell: an apostrophe in other code
        return
    for word in words:
        if set(word) <= set("();<>|&"):
            if call:
                yield call
            call = []
        elif call or word in PROGRAMS or word == "make":
            call.append(word)
        elif not re.fullmatch(r"[A-Z_]+=\S*|\$|do|then|time|\S*=\S*", word):
            call = []


def find_commands():
    """(place, whether it stands in a block, words) of every command that the documentation names."""
    for page in PAGES:
        text = page.read_text()
        for number, line in code_blocks(text):
            for words in commands(line):
                yield f"{page.name}:{number}", True, words
        for number, span in code_spans(text):
            if re.match(r"(tfmt-|make )", span):
                for words in commands(span):
                    yield f"{page.name}:{number}", False, words
    for flagfile in sorted((ROOT / "flags").glob("*.flags")):
        for number, line in enumerate(flagfile.read_text().splitlines(), 1):
            if line.startswith("#  "):
                for words in commands(line.strip("# ")):
                    yield f"{flagfile.name}:{number}", True, words


COMMANDS = list(find_commands())


def test_documentation_has_commands():
    named = {words[0] for _, _, words in COMMANDS}
    assert named == {*PROGRAMS, "make"}


def check_make(words):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", makefile, re.MULTILINE))
    for word in words[1:]:
        name, equals, _ = word.partition("=")
        assert name in (variables if equals else targets), f"Makefile has no {name}"


@pytest.mark.parametrize(
    ("block", "words"),
    [pytest.param(block, words, id=f"{place} {words[0]}") for place, block, words in COMMANDS],
)
def test_commands_parse(block, words, monkeypatch):
    if words[0] == "make":
        check_make(words)
        return
    command = import_module(PROGRAMS[words[0]]).COMMAND
    values = command.flags()
    whole = [word for word in words[1:] if "$" not in word and word not in ("...", "…")]
    given = [word for word in whole if PLACEHOLDER not in word or word.partition("=")[0] in ("--run", "--data_dir")]
    for word in set(words[1:]) - set(given) - {"...", "…"}:
        assert word.lstrip("-").partition("=")[0] in values
    try:
        parse(values, given)
    except Asked:
        return
    if block:
        monkeypatch.setattr("tfmt.bert.configs.find_shape", lambda *_: PAPER_SHAPES["bert-base-uncased"])
        monkeypatch.setattr("tfmt.figures.style.check_output", lambda *given: None)
        try:
            command.check(values)
        except RequestError as error:
            pytest.fail(f"{shlex.join(words)}: {error}")


@every_page
def test_extras_are_there(page):
    extras = set(importlib.metadata.metadata("tfmt").get_all("Provides-Extra"))
    named = re.findall(r"(?:\s|\"|tfmt)\.?\[([a-z,]+)\](?=\"|\s|`)", page.read_text())
    assert {extra for names in named for extra in names.split(",")} <= extras


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found = set(re.findall(r'(?:id|name)="([^"]+)"', page.read_text()))
    counts: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*?) *#*$", page.read_text(), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = counts.get(slug, 0)
        counts[slug] = number + 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


@every_page
def test_links_lead_somewhere(page):
    text = prose(page.read_text())
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    broken = []
    for target in targets:
        path, _, anchor = unquote(target).partition("#")
        linked = page.parent / path if path else page
        if not re.match(r"[a-z]+:", target) and (
            not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in anchors(linked))
        ):
            broken.append(target)
    assert not broken, f"{page.name} links to what is not there"


@every_page
def test_files_that_are_named_are_there(page):
    named = [span for _, span in code_spans(page.read_text()) if re.fullmatch(f"({ROOMS})/[\\w./*-]*", span)]
    gone = [span for span in named if span not in INSTALLED and not list(ROOT.glob(span.rstrip("/")))]
    assert not gone, f"{page.name} names what is not there"


EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)]


@pytest.fixture(scope="module")
def study(toy_bert, toy_glue, tmp_path_factory):
    """A folder with runs/, which holds one finished run under the name that the examples give it."""
    folder = tmp_path_factory.mktemp("study")
    assert train.main([f"--model={toy_bert}", "--task=mrpc", f"--data_dir={toy_glue}", "--mode=layernorm",
                       "--learning_rate=1e-3", "--epochs=1", "--max_length=32",
                       f"--output_dir={folder / 'runs'}"]) == 0  # fmt: skip
    (run,) = (folder / "runs").iterdir()
    run.rename(run.with_name("mrpc-layernorm-lr0.001-s0-d9e29dc098"))
    return folder


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstring_examples_run(path, study, monkeypatch):
    monkeypatch.chdir(study)
    module = import_module(
        ".".join(["tfmt", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    )
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed, "see the captured output"


@pytest.mark.parametrize("name", sorted(set(tfmt.__all__) - {"RunError"}))
def test_public_names_have_an_example(name):
    assert ">>> import tfmt\n" in (inspect.getdoc(getattr(tfmt, name)) or "")
