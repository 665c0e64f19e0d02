"""What is asked of a Ray cluster before any is connected to; no Ray is needed for it."""

import socket
import socketserver
import sys
import threading

import pytest

from tfmt import sweep
from tfmt.errors import RequestError
from tfmt.study import cluster
from tfmt.study.cluster import Node, Wish, check_address, check_wish, find_cluster, make_wish

PLAIN = Node("a", "plain", 8.0, 0.0)
GPUS = Node("b", "wide", 32.0, 4.0)
ONE = Node("c", "one", 8.0, 1.0)


@pytest.fixture
def listen():
    """Listens on a port whose every visitor is told some bytes; the address."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), None) as server:

        def start(told):
            class Answer(socketserver.BaseRequestHandler):
                def handle(self):
                    self.request.sendall(told)
                    self.request.recv(100)

            server.RequestHandlerClass = Answer
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"127.0.0.1:{server.server_address[1]}"

        yield start
        server.shutdown()


@pytest.mark.parametrize("address", ["auto", "local", "10.0.0.1:6379", "head.example:6379", "[::1]:6379"])
def test_addresses(address):
    check_address(address)


@pytest.mark.parametrize(
    "address", ["ray://10.0.0.1:10001", "10.0.0.1", "10.0.0.1:", ":6379", "h:0", "h:65536", "h:²", "http://h:1"]
)
def test_what_is_no_address_is_told_before_anybody_is_asked(address, capsys):
    with pytest.raises(RequestError, match=r"^--ray="):
        check_address(address)
    assert sweep.main(["--model=demo", "--task=mrpc", "--mode=full", "--only_check_args", f"--ray={address}"]) == 2
    assert capsys.readouterr().err.startswith(f"tfmt-sweep: --ray={address}: ")


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus", "replicas", "expected", "places"),
    [
        ([PLAIN], None, 0, 0, Wish(0.0, 1), 8),
        ([PLAIN], None, 3, 0, Wish(0.0, 3), 2),
        ([PLAIN, GPUS], None, 0, 0, Wish(1.0, 8), 4),
        ([PLAIN, GPUS, ONE], None, 0, 0, Wish(1.0, 8), 5),
        ([GPUS], None, 0, 2, Wish(2.0, 16), 2),
        ([GPUS], 0.25, 0, 0, Wish(0.25, 2), 16),
        ([GPUS], 0.1, 1, 0, Wish(0.1, 1), 32),  # CPUs are fewer than 40 parts of GPUs
        ([GPUS], 0.6, 0, 0, Wish(0.6, 8), 4),  # a part is of one GPU
        ([GPUS], 0.4, 0, 0, Wish(0.4, 4), 8),
        ([GPUS], 3.0, 0, 0, Wish(3.0, 32), 1),
        ([ONE], 0.1, 0, 0, Wish(0.1, 1), 8),
        ([GPUS], 0.0, 4, 0, Wish(0.0, 4), 8),
        ([GPUS], 0.5, 0, 1, Wish(0.5, 4), 8),
    ],
)
def test_wishes(nodes, gpus, cpus, replicas, expected, places):
    wish = make_wish(nodes, gpus, cpus, replicas)
    assert wish == expected
    assert sum(map(wish.places, nodes)) == places


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus", "replicas", "told"),
    [
        ([PLAIN], 1.0, 0, 0, "--gpus_per_run=1: no machine of the cluster has more than 0 (plain)"),
        ([GPUS, ONE], 5.0, 0, 0, "--gpus_per_run=5: no machine of the cluster has more than 4 (wide)"),
        ([GPUS], None, 0, 8, "--gpus_per_run=8: no machine of the cluster has more than 4 (wide)"),
        ([PLAIN], None, 9, 0, "--cpus_per_run=9: no machine of the cluster has more than 8 (plain)"),
        ([PLAIN, ONE], 1.0, 9, 0, "--cpus_per_run=9: no machine of the cluster has more than 8 (one)"),
        ([], None, 0, 0, "the cluster has no machine"),
    ],
)  # fmt: skip
def test_what_no_machine_has_is_refused(nodes, gpus, cpus, replicas, told):
    with pytest.raises(RequestError) as error:
        make_wish(nodes, gpus, cpus, replicas)
    assert told in str(error.value)


@pytest.mark.parametrize(("gpus", "replicas"), [(1.5, 0), (-1.0, 0), (float("nan"), 0), (float("inf"), 0), (1.0, 2)])
def test_what_no_cluster_could_give_is_refused_with_the_flags(gpus, replicas):
    with pytest.raises(RequestError, match=r"^--gpus_per_run"):
        check_wish(gpus, replicas, 16)


def test_flags_of_a_cluster_need_one(capsys):
    for flag in ("--gpus_per_run=1", "--cpus_per_run=2"):
        assert sweep.main(["--model=demo", "--task=mrpc", "--mode=full", "--only_check_args", flag]) == 2
        assert "give --ray as well" in capsys.readouterr().err


def test_an_address_where_nobody_listens_is_told_at_once_and_nothing_is_written(tmp_path, capsys, toy_bert, toy_glue):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = [f"--model={toy_bert}", f"--data_dir={toy_glue}", "--task=mrpc", "--mode=full", f"--ray={address}"]
        assert sweep.main([*flags, f"--output_dir={tmp_path / 'runs'}"]) == 2
    assert f"--ray={address}: nobody answers at {address} (Connection refused)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_auto_is_what_ray_notes_of_this_machine(tmp_path, monkeypatch, listen):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(RequestError, match=r"--ray=auto: this machine is in no Ray cluster"):
        find_cluster("auto")
    noted = listen(b"\0\0\0\4\0\0\0\0\0")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(noted)
    monkeypatch.setattr(cluster, "_import_ray", lambda: None)
    assert find_cluster("auto") == noted
    monkeypatch.setenv("RAY_ADDRESS", noted.replace("127.0.0.1", "localhost"))
    assert find_cluster("auto") == noted.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert find_cluster("auto") == noted


def test_a_port_of_something_else_is_no_head(listen):
    address = listen(b"SSH-2.0-x\r\n")
    with pytest.raises(
        RequestError, match=rf"^--ray={address}: nobody answers at {address} \(something else than Ray\)"
    ):
        find_cluster(address)


def test_without_ray_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"--ray needs the package ray: pip install 'tfmt\[cluster\]'"):
        find_cluster("local")


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"NodeManagerHostname": "gpu7", "NodeManagerAddress": "10.0.0.7", "NodeName": "10.0.0.7"}, "gpu7"),
        ({"NodeManagerHostname": "gpu7", "NodeManagerAddress": "10.0.0.7", "NodeName": "left"}, "left"),
        ({"NodeManagerHostname": "", "NodeManagerAddress": "10.0.0.7", "NodeName": ""}, "10.0.0.7"),
    ],
)
def test_machines_have_the_name_that_people_know(told, name):
    assert Node.of(told | {"NodeID": "a", "Resources": {"CPU": 2.0}}) == Node("a", name, 2.0, 0.0)


def test_gpus_of_a_run_share_its_batches_evenly():
    check_wish(4.0, 0, 16)
    check_wish(3.0, 2, 16)
    with pytest.raises(RequestError, match=r"^--batch_size=16: the 3 GPUs of a run share a batch evenly"):
        check_wish(3.0, 0, 16)
