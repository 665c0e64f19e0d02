"""A study as one page: what it holds, that no record is taken for more than text, and how a browser shows it."""

from __future__ import annotations

import html.parser
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PROGRAM, Page, browse

from tfmt import report, train
from tfmt.claims.claims import evaluate_claims, tabulate_claims
from tfmt.flags import parse, read_spec, write_flags
from tfmt.page.drawings import draw_all
from tfmt.page.facts import tell_run
from tfmt.page.page import build_page
from tfmt.results.formats import Block, Table
from tfmt.results.tables import build_tables
from tfmt.runs.records import RECORD_FILE, ModelFacts, Record, find_records, tabulate

Add = Callable[..., Record]
HOSTILE = """</script><script>alert('x')</script><img src=x onerror="alert(1)"> & ' " `{{ 7 * 7 }}`"""


def write_page(folder: Path, *flags: str) -> str:
    page = folder / "study.html"
    assert report.main([f"--runs={folder / 'runs'}", f"--html={page}", *flags]) == 0
    return page.read_text(encoding="utf-8")


def add_study(add: Add) -> None:
    """Two tasks, four modes with scores on halves, and one run each that diverged, failed and collapsed.

    The first epoch is the best, and the second better on one half alone. So cross-fitted scores are 3 points lower,
    those of LayerNorms 14, with which they are worse than random weights.
    """
    for task in ("mrpc", "rte"):
        for number, mode in enumerate(("full", "frozen", "layernorm", "random")):
            dip = 0.26 if mode == "layernorm" else 0.04
            for rate in (1e-4, 1e-3):
                for seed in (0, 1):
                    score = 0.9 - 0.1 * number + 0.01 * seed
                    halves = [(score + 0.02, score - 0.02), (score - dip, score)]
                    run = {"task": task, "mode": mode, "learning_rate": rate, "seed": seed}
                    add(score, last=score - dip / 2, halves=halves, **run)
    for block in range(3):
        add(0.6 + 0.05 * block, mode="layernorm", layers=str(block))
    add(None, mode="bitfit", status="diverged")
    add(None, mode="bitfit", status="failed", seed=1)
    add(0.5, mode="attention", collapsed=True)


class _Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open not in ("script", "style"):
            self.texts.append(data)

    def all(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.elements if attribute in attributes]


def test_it_holds_the_study_and_needs_nothing_else(add_run: Add, tmp_path: Path) -> None:
    add_study(add_run)
    text = write_page(tmp_path)
    page = _Elements(text)
    seen = " ".join(" ".join(page.texts).split())
    for told in ("38 runs on MRPC, RTE", "38: 36 completed, 1 diverged, 1 failed, 1 collapsed", "2025-01-01 00:00 UTC",
                 "Claims of the papers", "Every module alone comes close to full fine-tuning.",
                 "Table 1: modules of BERT",
                 "Table 3: the LayerNorms of one block", "Learning rate chosen", "Score by learning rate",
                 "Diverged, failed, collapsed", "No runs for it here. Make them: tfmt-sweep --flagfile=table2.flags",
                 "bert-base-uncased", "a" * 64, "tensorflow 2.21.0", "CPU:0",
                 "0 weights outside the selections changed, in 38 runs"):  # fmt: skip
        assert told in seen, told
    drawn = [label for tag, attributes in page.elements if tag == "svg" for label in [attributes["aria-label"]]]
    assert drawn == ["Score by learning rate", "Training loss and score by epoch", "Score by block"]
    assert seen.count("tfmt-train --model=bert-base-uncased --task=") == 38
    # Every reference stays on the page.
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    links = page.all("href") + page.all("src") + re.findall(r"url\(([^)]*)\)", text)
    assert {link.removeprefix("#") for link in links} - set(ids) <= {"data:,"}
    assert "http:" not in text.replace('http-equiv="', "")
    assert "https:" not in text
    assert "@import" not in text


def test_cross_fitted_scores_stand_beside_the_papers(add_run: Add, tmp_path: Path) -> None:
    """The first half chooses the first epoch, and the second the second: (s - 0.02 + s - dip) / 2 is reported."""
    add_study(add_run)
    text = write_page(tmp_path)
    seen = " ".join(" ".join(_Elements(text).texts).split())
    for told in ("claim verdict cross-fitted for it clearly what it says C1", "C4 holds fails, 0 of 2 (differs) 2 of 2",
                 "The numbers, cross-fitted claim task compared value",
                 "Learning rate chosen, cross-fitted MRPC RTE Full-FT 1e-4 1e-4"):  # fmt: skip
        assert told in seen, told
    numbers = seen.partition("The numbers, cross-fitted claim")[2].partition("Missing, or collapsed")[0]
    for told in ("C2 MRPC LayerNorms - Full-FT -31.0", "C4 RTE LayerNorms - Random -1.0"):
        assert told in numbers, told
    paper, _, crossfit = seen.partition("Table 1:")[2].partition("Cross-fitted: chosen on one half of the split")
    crossfit = crossfit.partition("Learning rate chosen")[0]
    for mode, score, fair in (("Full-FT 100", 90.5, 87.5), ("LayerNorms 0.034", 70.5, 56.5)):
        for block, expected in ((paper, score), (crossfit, fair)):
            assert f"{mode} {expected} ± 0.7 {expected} ± 0.7 {expected}" in block
    assert "Multi-head attention 1.2 - - -" in crossfit  # its run has no halves
    seen = " ".join(" ".join(_Elements(write_page(tmp_path, "--protocol=paper")).texts).split())
    assert "ross-fitted" not in seen


def test_the_same_runs_give_the_same_bytes(add_run: Add, tmp_path: Path) -> None:
    """Also in another process, whose sets have another order, and from another folder."""
    add_study(add_run)
    text = write_page(tmp_path)
    other = tmp_path / "elsewhere: no runs"
    other.mkdir()
    (tmp_path / "runs").rename(other / "runs")
    command = [sys.executable, "-m", "tfmt.report", f"--runs={other / 'runs'}", f"--html={other / 'page.html'}"]
    subprocess.run(command, check=True, capture_output=True)
    assert (other / "page.html").read_text(encoding="utf-8") == text
    assert str(tmp_path) not in text


def hostile(record: Record) -> Record:
    """The same run with a hostile text wherever a record has one."""
    assert record.result
    assert record.cost
    predicted = {"validation": {HOSTILE: 408}}
    return record.model_copy(
        update={
            "run_id": f"{HOSTILE} {record.spec.seed}",
            "error": HOSTILE,
            "warnings": [HOSTILE],
            "tuned_sha256": HOSTILE,
            "model": ModelFacts(name=HOSTILE, revision=HOSTILE, commit=HOSTILE, sha256=HOSTILE),
            "result": record.result.model_copy(update={"predicted": predicted, "reasons": {HOSTILE: HOSTILE}}),
            "cost": record.cost.model_copy(update={"devices": [HOSTILE], "computed_on": [HOSTILE]}),
            "origin": record.origin.model_copy(
                update={"tfmt": HOSTILE, "packages": {HOSTILE: HOSTILE}, "python": HOSTILE, "git_commit": HOSTILE}
                | {"model_sha256": HOSTILE, "data_sha256": HOSTILE, "started": HOSTILE, "finished": HOSTILE}
            ),
        }
    )


@pytest.fixture
def hostile_page(add_run: Add, tmp_path: Path) -> Path:
    """A page of runs all of whose texts are hostile: names of model, folder, columns and classes, errors, versions."""
    names = {"model": HOSTILE, "revision": HOSTILE, "data_dir": HOSTILE, "label_column": HOSTILE}
    kind = {"task": "custom", "task_type": "classification", "collapsed": True}
    for seed in (0, 1):
        columns = ("text", HOSTILE + str(seed))  # by which columns of tables and panels of figures are told apart
        add_run(0.5, text_columns=columns, seed=seed, **kind, **names)
    records, _ = find_records(tmp_path / "runs")
    for record in map(hostile, records):
        (next((tmp_path / "runs").glob(f"*-s{record.spec.seed}-*")) / RECORD_FILE).write_text(record.to_json())
    write_page(tmp_path)
    return tmp_path / "study.html"


def test_what_a_record_says_is_text(hostile_page: Path) -> None:
    text = hostile_page.read_text(encoding="utf-8")
    page = _Elements(text)
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{}]
    assert "img" not in {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    seen = "".join(page.texts)
    assert seen.count(HOSTILE) > 20
    assert "{{ 7 * 7 }}" in seen
    assert "<script>alert" not in text


def test_columns_and_blocks_come_as_they_are(add_run: Add, tmp_path: Path) -> None:
    """Of claims and tables that have more of them than there are today."""
    record = add_run(0.5)
    runs = tabulate([record])
    claims = Table("claims", "Claims", ("One line.",), (
        Block("", ("claim", "verdict", "cross-fitted", "new"), (("C1", "holds", "fails", "12 <b>"),)),
        Block("More", ("claim", "why"), (("C1", "because"),)),
    ), ())  # fmt: skip
    tables = [Table("9", "Table 9", (), tuple(Block(f"Part {i}", ("", "x"), (("a", f"{i}.0"),)) for i in range(4)), ())]
    page = _Elements(build_page(runs, [record], tables, claims, list(draw_all(tmp_path / "runs")), write_flags))
    seen = " ".join(" ".join(page.texts).split())
    for told in ("claim verdict cross-fitted new C1 holds fails 12 <b>", "More claim why C1 because", "Part 3 x a 3.0"):
        assert told in seen


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "layernorm", "layers": "0,2-3", "learning_rate": 0.1 + 0.2, "seed": 7, "frozen_prefix": "cached"},
        {"mode": "fisher", "fisher_from": ("mrpc-fisher-1", "rte, fisher-2")},
        {"task": "custom", "data_dir": "own data", "text_columns": ("a", "b c"), "label_column": "it's",
         "task_type": "regression", "split_seed": 0},
        {"model": "demo", "train_limit": 100, "precision": "bfloat16"},
    ],
)  # fmt: skip
def test_a_runs_command_is_read_as_the_run(add_run: Add, settings: dict[str, Any]) -> None:
    record = add_run(**settings)
    program, *arguments = shlex.split(tell_run(record, write_flags).command)
    values = train.COMMAND.flags()
    parse(values, arguments)
    assert program == "tfmt-train"
    assert read_spec(values) == record.spec


def test_a_runs_command_names_the_commit_and_no_folder_of_the_machine(add_run: Add) -> None:
    record = add_run(mode="fisher", data_dir="/home/me/data/own", fisher_from=("/home/me/runs/one",))
    facts = ModelFacts(name="bert-base-uncased", revision="main", commit="c0ffee", sha256="a")
    told = shlex.split(tell_run(record.model_copy(update={"model": facts}), write_flags).command)
    assert {"--model=bert-base-uncased", "--revision=c0ffee", "--data_dir=own", "--fisher_from=one"} <= set(told)
    local = tell_run(add_run(model="/home/me/models/tiny"), write_flags)
    assert "--model=tiny" in shlex.split(local.command)


def test_where_and_epoch_hold_for_all_of_it(add_run: Add, tmp_path: Path) -> None:
    add_study(add_run)
    seen = " ".join(" ".join(_Elements(write_page(tmp_path, "--where=task=mrpc", "--epoch=last")).texts).split())
    assert "22 runs on MRPC" in seen
    assert "Left out by --where=task=mrpc: 16 of 38 runs." in seen
    assert "RTE" not in re.sub(r"not run here:[^.]*\.", "", seen)
    assert "last epoch of each run" in seen


def test_a_page_of_many_runs_is_small(add_run: Add, tmp_path: Path) -> None:
    """Below 2 MB for 300 runs: the list grows with them, the figures with what they show."""
    for seed in range(300):
        add_run(0.5 + seed / 1000, mode="layernorm", seed=seed)
    records, _ = find_records(tmp_path / "runs")
    runs = tabulate(records)
    tables = build_tables(runs, "1")
    text = build_page(runs, records, tables, tabulate_claims(evaluate_claims(runs)), [], write_flags)
    assert len(text.encode()) < 700_000


def test_a_page_beside_something_else_is_refused(
    add_run: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(0.5)
    for flag in ("--table=1", "--claims", "--format=csv", f"--output={tmp_path / 'out'}"):
        assert report.main([f"--runs={tmp_path / 'runs'}", f"--html={tmp_path / 'a.html'}", flag]) == 2
        error = f"{flag.partition('=')[0]} means nothing beside --html; leave one of them out"
        assert capsys.readouterr().err == f"tfmt-report: {error}\n"
    assert report.main([f"--runs={tmp_path / 'runs'}", f"--html={tmp_path / 'no' / 'a.html'}"]) == 2
    assert "--html" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


# ---- in a browser --------------------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browse(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def study(add_run: Add, tmp_path: Path) -> Path:
    add_study(add_run)
    write_page(tmp_path)
    return tmp_path / "study.html"


def column(page: Page, name: str) -> list[str]:
    """What a column of the list shows, from the top down."""
    told = page.evaluate(f"""(() => {{
        const heads = [...document.querySelectorAll("#list thead th")].map((head) => head.textContent);
        return [...document.querySelectorAll("#list tbody:not([hidden])")].map(
            (body) => body.rows[0].cells[heads.indexOf({name!r})].textContent);
    }})()""")
    return list(told)


def click(page: Page, name: str) -> None:
    page.evaluate(f"""[...document.querySelectorAll("#list thead button")]
        .find((button) => button.textContent === {name!r}).click()""")


def type_in(page: Page, text: str) -> None:
    page.evaluate(f"""(() => {{
        const search = document.getElementById("search");
        search.value = {text!r};
        search.dispatchEvent(new Event("input"));
    }})()""")


def colour_of(page: Page, selector: str, name: str) -> list[int]:
    """A colour as red, green and blue."""
    style = f"getComputedStyle(document.querySelector({selector!r})).{name}"
    return list(page.evaluate(f"{style}.match(/\\d+/g).map(Number)"))


# The captions of all grids for cross-fitted scores.
CROSS_FITTED = """[...document.querySelectorAll("caption")].map((each) => each.textContent)
    .filter((text) => text.toLowerCase().includes("cross-fitted"))"""


@in_browser
def test_nothing_overflows_and_nothing_is_asked_for(browser: Page, study: Path) -> None:
    for width in (400, 1400):
        for dark in (False, True):
            browser.open(study, width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert "The numbers, cross-fitted" in browser.evaluate(CROSS_FITTED)
            paper, ink = (sum(colour_of(browser, "body", name)) for name in ("backgroundColor", "color"))
            assert (paper < ink) is dark
            assert colour_of(browser, ".card", "backgroundColor") == [255, 255, 255]
            assert browser.complaints == []
            assert browser.requests == []


@in_browser
def test_on_paper_nothing_is_cut_and_no_control_is_left(browser: Page, study: Path, tmp_path: Path) -> None:
    width = 1031  # A4 across, less the margins
    browser.open(study, width)
    browser.call("Emulation.setEmulatedMedia", media="print")
    wide = browser.evaluate("""[...document.querySelectorAll("table, svg, .told code, p")]
        .map((each) => each.getBoundingClientRect().right).filter((right) => right > innerWidth)""")
    assert wide == []
    assert len(browser.evaluate(CROSS_FITTED)) > 3
    assert browser.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    shown = browser.evaluate("[...document.querySelectorAll('.told')].every((row) => row.getClientRects().length)")
    assert shown is True
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.print_pdf(tmp_path / "study.pdf")
    assert (tmp_path / "study.pdf").read_bytes().startswith(b"%PDF")


@in_browser
def test_the_list_sorts(browser: Page, study: Path) -> None:
    browser.open(study)
    before = column(browser, "run")
    known = dict(zip(before, column(browser, "best"), strict=True))
    for times in (1, 2):
        click(browser, "best")
        shown = column(browser, "best")
        numbers = [float(text) for text in shown if text != "-"]
        assert shown[len(numbers) :] == ["-", "-"]  # what has no score is last, whichever way
        assert numbers == sorted(numbers, reverse=times == 2)
        assert dict(zip(column(browser, "run"), shown, strict=True)) == known
    rates = [float(text) for text in (click(browser, "rate"), column(browser, "rate"))[1]]
    assert rates == sorted(rates)
    click(browser, "mode")
    assert column(browser, "mode") == sorted(column(browser, "mode"))
    assert browser.evaluate("document.querySelectorAll('[aria-sort]').length") == 1
    commands = browser.evaluate("""[...document.querySelectorAll("#list tbody")].every((body) =>
        body.querySelector("code").textContent.includes(`--mode=${body.rows[0].cells[1].textContent}`))""")
    assert commands is True  # each run took its command along
    assert browser.complaints == []


@in_browser
def test_the_list_is_narrowed(browser: Page, study: Path) -> None:
    browser.open(study)
    assert browser.evaluate("document.getElementById('count').textContent") == "38 of 38 runs"
    type_in(browser, "  RTE --mode=layernorm ")
    assert set(column(browser, "task")) == {"RTE"}
    assert set(column(browser, "mode")) == {"layernorm"}
    assert browser.evaluate("document.getElementById('count').textContent") == "4 of 38 runs"
    type_in(browser, "nothing of the kind")
    assert column(browser, "run") == []
    type_in(browser, "")
    names = browser.evaluate(
        "[...document.querySelectorAll('#choices label')].map((label) => label.firstChild.data.trim())"
    )
    assert names == ["task", "mode", "layers", "rate", "seed", "status", "notes"]
    browser.evaluate("""(() => {
        const select = document.querySelectorAll("#choices select")[5];
        select.value = "=diverged";
        select.dispatchEvent(new Event("change"));
    })()""")
    assert column(browser, "status") == ["diverged"]
    # A link to a run that is not shown shows it, with its command.
    browser.evaluate("document.querySelector('#lost tbody tr:last-child a').click()")
    browser.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert len(column(browser, "run")) == 38
    assert browser.evaluate("document.querySelectorAll('tbody:target .told')[0].getClientRects().length") > 0
    told = "[...document.querySelectorAll('.told')].filter((row) => row.getClientRects().length).length"
    assert browser.evaluate(told) == 1
    browser.evaluate("document.getElementById('commands').click()")
    assert browser.evaluate(told) == 38
    assert browser.complaints == []


@in_browser
def test_hostile_texts_are_shown_and_sorted_as_texts(browser: Page, hostile_page: Path) -> None:
    browser.open(hostile_page, 400)
    for name in browser.evaluate(
        "[...document.querySelectorAll('#list thead button')].map((head) => head.textContent)"
    ):
        click(browser, name)
    browser.evaluate("document.querySelector('#lost td a').click()")
    assert browser.evaluate("document.querySelectorAll('tbody:target').length") == 1
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    assert HOSTILE in browser.evaluate("document.querySelector('.told').textContent")
    assert browser.complaints == []
    assert browser.requests == []


def test_every_kind_of_page_element_is_known(study: Path) -> None:
    """No element that a page could run, load or frame something with."""
    tags = {tag for tag, _ in _Elements(study.read_text(encoding="utf-8")).elements}
    assert not tags & {"iframe", "object", "embed", "base", "form", "audio", "video", "foreignobject"}
