"""What is held back of TensorFlow's greetings, and that nothing else is; with a package of its name in its place."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tfmt
from tfmt import quiet

FAKE = """
import logging, os
for line in ("I0000 00:00 port.cc:153] oneDNN is on", "told", "E0000 00:00:1795 cuda.cc:1] no driver"):
    os.write(2, line.encode() + b"\\n")
logging.getLogger("tensorflow").setLevel(logging.INFO)
"""


def run(folder, code, fake=FAKE, **environment):
    (folder / "tensorflow.py").write_text(fake)
    paths = os.pathsep.join([str(folder), str(Path(tfmt.__file__).parents[1])])
    return subprocess.run([sys.executable, "-c", "import logging, sys, tfmt\n" + code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": paths} | environment)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "environment", "shown"),
    [
        ("import tensorflow", {"TF_CPP_MIN_LOG_LEVEL": "2"}, ["told"]),
        ("import tensorflow", {"TF_CPP_MIN_LOG_LEVEL": "0"}, ["I0000", "told", "E0000"]),
        ("sys.stderr = None; import tensorflow", {"TF_CPP_MIN_LOG_LEVEL": "2"}, ["told"]),
        ("sys.stderr.close(); import tensorflow", {"TF_CPP_MIN_LOG_LEVEL": "2"}, ["told"]),
        ("import os; os.close(2); import tensorflow", {"TF_CPP_MIN_LOG_LEVEL": "2"}, []),
        ("import tempfile; tempfile.tempdir = '/nowhere'; import tensorflow", {"TF_CPP_MIN_LOG_LEVEL": "2"},
         ["I0000", "told", "E0000"]),
    ],
)  # fmt: skip
def test_the_first_import_shows_what_is_no_greeting(tmp_path, code, environment, shown):
    fake = FAKE.replace("    os.write", "    try: os.write").replace('b"\\n")', 'b"\\n")\n    except OSError: pass')
    done = run(tmp_path, code + "; print(logging.getLogger('tensorflow').level)", fake, **environment)
    assert done.returncode == 0, done.stderr
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == shown
    assert done.stdout == f"{logging_level(environment)}\n"


def logging_level(environment):
    return 20 if environment["TF_CPP_MIN_LOG_LEVEL"] < "2" else 30


def test_a_level_that_the_user_has_set_stays_and_a_failing_import_shows_all(tmp_path):
    code = (
        "logging.getLogger('tensorflow').setLevel(40); import tensorflow; print(logging.getLogger('tensorflow').level)"
    )
    assert run(tmp_path, code, TF_CPP_MIN_LOG_LEVEL="2").stdout == "40\n"
    done = run(tmp_path, "import tensorflow", FAKE + "raise ImportError('no such library')", TF_CPP_MIN_LOG_LEVEL="2")
    assert done.returncode == 1
    assert "oneDNN is on" in done.stderr
    assert "no such library" in done.stderr


def test_two_threads_leave_stderr_where_it_was():
    before, inside, leave = os.fstat(2), threading.Event(), threading.Event()

    def hold():
        with quiet.without_greetings():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)
    with quiet.without_greetings():
        leave.set()
        thread.join(20)
    assert os.path.samestat(os.fstat(2), before)


def test_errors_in_a_held_block_go_through():
    with pytest.raises(OSError, match="gone") as error, quiet.without_greetings():
        raise OSError(errno.EIO, "gone")
    assert error.value.errno == errno.EIO
