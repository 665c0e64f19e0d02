"""Who may write into a run's folder."""

import json
import os
import threading
import time

import pytest

from tfmt.runs import lease
from tfmt.runs.lease import Lease, TakenError, disk_clock, find_holder, is_held


def leave(folder, number=1, *, age=0.0, **owner):
    """The lease of another owner."""
    path = folder / f"lease.{number}"
    path.write_text(json.dumps({**lease._this_process(), **owner}))
    time = path.stat().st_mtime - age
    os.utime(path, (time, time))
    return path


def test_one_at_a_time(tmp_path):
    with Lease(tmp_path) as held:
        held.check()
        assert is_held(tmp_path)
        with pytest.raises(TakenError, match=str(os.getpid())), Lease(tmp_path):
            pass
        held.check()
    assert not is_held(tmp_path)
    with Lease(tmp_path) as held:
        held.check()
        (tmp_path / "record.json").touch()
    assert os.listdir(tmp_path) == ["record.json"]


def test_dead_process_of_this_machine_is_followed_at_once(tmp_path):
    leave(tmp_path, pid=2**22 + 1)
    assert not is_held(tmp_path)
    with Lease(tmp_path) as held:
        held.check()
        assert os.listdir(tmp_path) == ["lease.2"]


def test_a_number_of_a_process_that_another_has_now_is_no_owner(tmp_path):
    leave(tmp_path, start="1")
    assert not is_held(tmp_path)


def test_a_living_owner_on_another_machine_of_the_same_name(tmp_path):
    """Clouds and containers call many machines alike; a process number says nothing there."""
    pid, start = 2**22 + 1, "17"
    leave(tmp_path, pid=pid, start=start, place=lease._place().replace(lease._place().split()[1], "another-boot"))
    assert is_held(tmp_path)
    with pytest.raises(TakenError, match=str(pid)), Lease(tmp_path):
        pass


def test_a_frozen_owner_leaves_the_lease_of_its_followers_alone(tmp_path, monkeypatch):
    """A stops for longer than a lease; B takes over and ends; C begins; then A wakes."""
    first = Lease(tmp_path)
    first.__enter__()
    os.utime(first._file, (0, 0))
    with Lease(tmp_path) as second:  # B counts A as dead
        second.check()
    with Lease(tmp_path) as third:
        before = (tmp_path / f"lease.{third._number}").stat()
        monkeypatch.setattr(lease, "BEAT_SECONDS", 0.001)
        beats = threading.Thread(target=first._beat)  # A's thread wakes up with it
        beats.start()
        threading.Event().wait(0.05)
        for slept in (False, True):
            first._beaten -= lease.LEASE_SECONDS * slept
            with pytest.raises(TakenError, match="taken"):
                first.check()
        first.__exit__()
        beats.join()
        after = (tmp_path / f"lease.{third._number}").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        third.check()
    assert first._number < second._number < third._number


def test_a_frozen_owner_of_a_run_that_has_ended_since(tmp_path):
    """With the record all leases are gone, and the next run of the folder begins at 1, as the frozen one did."""
    first = Lease(tmp_path)
    first.__enter__()
    os.utime(first._file, (0, 0))
    with Lease(tmp_path):
        (tmp_path / "record.json").touch()
    first._beaten -= lease.LEASE_SECONDS
    with pytest.raises(TakenError):
        first.check()
    with Lease(tmp_path) as again:
        assert again._number == first._number
        with pytest.raises(TakenError):
            first.check()
        first.__exit__()
        again.check()


def test_silent_owner_of_another_machine_is_followed_in_time(tmp_path):
    leave(tmp_path, host="elsewhere", place="elsewhere", age=lease.LEASE_SECONDS - 5)
    with pytest.raises(TakenError, match="elsewhere"), Lease(tmp_path):
        pass
    leave(tmp_path, host="elsewhere", place="elsewhere", age=lease.LEASE_SECONDS + 5)
    with Lease(tmp_path) as held:
        held.check()


@pytest.mark.parametrize("minutes", [-10, 10])
def test_machines_whose_clocks_differ_agree_on_who_is_silent(tmp_path, monkeypatch, minutes):
    """Both times are the disk's: a clock that is ahead makes nobody silent, and one that is behind nobody alive."""
    real = time.time
    monkeypatch.setattr(lease.time, "time", lambda: real() + 60 * minutes)
    for age, held in ((0.0, True), (lease.LEASE_SECONDS - 5, True), (lease.LEASE_SECONDS + 5, False)):
        leave(tmp_path, host="elsewhere", place="elsewhere", age=age)
        assert is_held(tmp_path) is held


def test_half_written_lease_counts(tmp_path):
    (tmp_path / "lease.1").write_text("")
    assert is_held(tmp_path)


def test_owner_that_was_overtaken_stops(tmp_path):
    with Lease(tmp_path) as held:
        leave(tmp_path, 2)
        with pytest.raises(TakenError, match="taken"):
            held.check()
    assert os.listdir(tmp_path) == ["lease.2"]


def test_owner_whose_lease_is_gone_stops(tmp_path):
    with Lease(tmp_path) as held:
        (tmp_path / "lease.1").unlink()
        (tmp_path / "lease.1").touch()  # the name alone makes no owner
        with pytest.raises(TakenError):
            held.check()


def test_owner_that_slept_renews_or_loses(tmp_path):
    with Lease(tmp_path) as held:
        held._beaten -= lease.LEASE_SECONDS
        held.check()
        assert os.listdir(tmp_path) == ["lease.2"]
        held._beaten -= lease.LEASE_SECONDS
        leave(tmp_path, 3)
        with pytest.raises(TakenError):
            held.check()


def test_holder_is_told_until_it_counts_as_dead(tmp_path):
    assert find_holder(tmp_path).state == "none"
    elsewhere = {"host": "driver", "place": "elsewhere", "pid": 7}
    for age, state in ((10, "living"), (lease.SILENT_SECONDS + 10, "silent"), (lease.LEASE_SECONDS + 10, "none")):
        leave(tmp_path, age=age, **elsewhere)
        holder = find_holder(tmp_path, disk_clock(tmp_path))
        assert (holder.state, is_held(tmp_path)) == (state, state != "none")
        if state != "none":
            assert (holder.host, holder.pid) == ("driver", 7)
            assert age - 1 < holder.seconds < age + 5
    leave(tmp_path, **elsewhere, node="node3")
    assert find_holder(tmp_path).host == "node3"
    assert os.listdir(tmp_path) == ["lease.1"]


def test_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    with Lease(tmp_path):
        path = tmp_path / "lease.1"
        os.utime(path, (0, 0))
        for _ in range(500):
            if path.stat().st_mtime > 1e9:
                break
            threading.Event().wait(0.01)
        assert path.stat().st_mtime > 1e9


def test_of_many_that_follow_a_dead_owner_one_wins(tmp_path):
    for _ in range(20):
        leave(tmp_path, pid=2**22 + 1)
        start, release, lost, won = threading.Barrier(8), threading.Event(), threading.Semaphore(0), []

        def follow(start=start, release=release, lost=lost, won=won):
            start.wait()
            try:
                with Lease(tmp_path) as held:
                    won.append(held)
                    release.wait()
                    held.check()
            except TakenError:
                return
            finally:
                lost.release()

        threads = [threading.Thread(target=follow) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(7):
            assert lost.acquire(timeout=20)
        release.set()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(os.listdir(tmp_path)) == 1
        assert not is_held(tmp_path)
