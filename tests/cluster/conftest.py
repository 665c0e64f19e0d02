"""What the checks with a cluster have measured stands at the end of their output."""

import signal

import pytest

MEASURED = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def measure(pytestconfig):
    """Takes (event, seconds)."""
    return lambda *told: pytestconfig.stash.setdefault(MEASURED, []).append(told)


@pytest.fixture(autouse=True, scope="session")
def none_ignored():
    """A shell's background begins with Ctrl-C ignored, which sweeps would respect."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter, config):
    for event, seconds in config.stash.get(MEASURED, []):
        terminalreporter.write_line(f"{seconds:7.2f} s  {event}")
