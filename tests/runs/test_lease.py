"""Who may write into a run's folder."""

import json
import os
import threading

import pytest

from tfmt.runs import lease
from tfmt.runs.lease import Lease, TakenError, is_held


def leave(folder, number=1, *, host=None, pid=None, age=0.0):
    """The lease of another owner."""
    path = folder / f"lease.{number}"
    path.write_text(json.dumps({"host": host or lease._host(), "pid": pid or os.getpid()}))
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
    assert os.listdir(tmp_path) == []
    with Lease(tmp_path):
        pass


def test_dead_process_of_this_machine_is_followed_at_once(tmp_path):
    leave(tmp_path, pid=2**22 + 1)
    assert not is_held(tmp_path)
    with Lease(tmp_path) as held:
        held.check()
        assert os.listdir(tmp_path) == ["lease.2"]


def test_silent_owner_of_another_machine_is_followed_in_time(tmp_path):
    leave(tmp_path, host="elsewhere", age=lease.LEASE_SECONDS - 5)
    with pytest.raises(TakenError, match="elsewhere"), Lease(tmp_path):
        pass
    leave(tmp_path, host="elsewhere", age=lease.LEASE_SECONDS + 5)
    with Lease(tmp_path) as held:
        held.check()


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
        assert os.listdir(tmp_path) == []
