"""What a signal does to a command: at once where nothing is lost, else where its work is whole; and how it ends."""

import os
import signal
import time

import pytest

from tfmt import signals


@pytest.fixture(autouse=True)
def none_ignored():
    """As in a shell's foreground: in its background, or behind nohup, a process begins with some of them ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0)  # Python runs the handler between two of its instructions


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_signal_stops_at_once_where_nothing_would_be_lost(number):
    before = signal.getsignal(number)
    with pytest.raises(signals.Stop) as stop, signals.heeded(), signals.held(), signals.at_once():  # noqa: PT012
        send(number)
        pytest.fail("went on")
    assert (stop.value.number, stop.value.name) == (number, signal.Signals(number).name)
    assert not isinstance(stop.value, Exception)
    assert (signal.getsignal(number), signals.asked()) == (before, 0)


def test_signal_waits_where_work_is_to_be_made_whole():
    with signals.heeded():
        with signals.held():
            signals.check()
            send(signal.SIGTERM)
            assert signals.asked() == signal.SIGTERM
            with pytest.raises(signals.Stop, match="all of it"):
                signals.check("all of it")
        with pytest.raises(signals.Stop), signals.at_once():
            pytest.fail("went on")


def test_signal_that_comes_twice_within_moments_is_one_and_a_later_one_ends_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(signals, "die_of", ended.append)
    with signals.heeded(), signals.held():
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # as `timeout` sends it: to its command, and to the group
        assert ended == []
        monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
        send(signal.SIGINT)
    assert ended == [signal.SIGINT]
    with signals.heeded(patient=True), signals.held():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert len(ended) == 1


def test_signals_that_a_command_was_started_to_ignore_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with signals.heeded():
            send(signal.SIGHUP)
        assert signals.asked() == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_lost_terminal_stops_nothing(monkeypatch):
    there = [True]
    monkeypatch.setattr(signals, "_has_terminal", lambda: there[0])
    with signals.heeded():
        there[0] = False
        send(signal.SIGHUP)
        assert signals.asked() == 0
        there[0] = True
        with pytest.raises(signals.Stop):
            send(signal.SIGHUP)
