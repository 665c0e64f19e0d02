"""What the checks with a cluster have measured stands at the end of their output."""

import pytest

MEASURED = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def measure(pytestconfig):
    """Takes (event, seconds)."""
    return lambda *told: pytestconfig.stash.setdefault(MEASURED, []).append(told)


def pytest_terminal_summary(terminalreporter, config):
    for event, seconds in config.stash.get(MEASURED, []):
        terminalreporter.write_line(f"{seconds:7.2f} s  {event}")
