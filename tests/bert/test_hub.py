"""The hub: what is fetched, what is said of all that goes wrong there, and that a study trains what its records say."""

import json
import shutil
import time
import warnings
from types import SimpleNamespace

import pytest
from hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import logging as hub_logging
from safetensors.numpy import load_file, save_file

from tfmt.bert import hub
from tfmt.bert.base_weights import model_digest
from tfmt.bert.configs import locate_model
from tfmt.errors import RequestError, RequestWarning, RunError
from tfmt.files import UnwritableError
from tfmt.runs.records import find_records
from tfmt.runs.runner import Sources, prepare
from tfmt.spec import RunSpec
from tfmt.study.dry_run import describe
from tfmt.study.grid import expand_grid
from tfmt.study.sweep import Sweep
from tfmt.study.worker import Executor
from tfmt.tuned.export import export_run
from tfmt.tuned.load import read_tuned

# A download that was given up may go on in its thread after a test, and tell of it.
hub_logging.set_verbosity(hub_logging.CRITICAL)
TOKENS = ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer() as running:
        monkeypatch.setattr(hub, "_endpoint", lambda: running.url)
        monkeypatch.setattr(hub, "METADATA_GRACE_SECONDS", 0.5)
        monkeypatch.setattr(hub, "STALL_SECONDS", 1.0)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.7)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.7)
        yield running


def other_weights(source, target):
    """A copy of a model with other weights of the same shapes."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    save_file({name: 0.5 * value for name, value in tensors.items()}, target / "model.safetensors")
    return target


@pytest.mark.parametrize("holds", ["whole", "shards", "keras"])
def test_what_decides_weights_and_tokens_is_fetched_once(server, toy_bert, tmp_path, capsys, holds):
    weights = {"whole": ["model.safetensors"], "keras": ["tf_model.h5"],
               "shards": ["model.safetensors.index.json", "model-00001-of-00002.safetensors",
                          "model-00002-of-00002.safetensors"]}[holds]  # fmt: skip
    unused = ["pytorch_model.bin", "README.md", "own.py", "flax_model.msgpack"]
    unused += ["tf_model.h5"] if holds == "whole" else []
    (tmp_path / "model").mkdir()
    for file in [*TOKENS, *weights, *unused]:
        (tmp_path / "model" / file).write_text(file)
    shutil.copy(toy_bert / "config.json", tmp_path / "model")
    commit = server.commit("some/bert", tmp_path / "model", "main", "v1")
    found = locate_model("some/bert")
    assert (found.name, found.revision, found.commit) == ("some/bert", "", commit)
    assert {path.name for path in found.folder.iterdir()} == {"config.json", *TOKENS, *weights}
    assert server.paths("api") == ["/api/models/some/bert/revision/main"]
    said = capsys.readouterr().err.splitlines()
    count, size = 6 + len(weights), sum(path.stat().st_size for path in found.folder.iterdir())
    much = f"{count} files, {size / 1000:.1f} kB"
    assert said[0] == f"downloading some/bert at commit {commit[:10]} from {server.url} ({much})"
    assert said[1].startswith("downloaded some/bert in")

    server.calls.clear()
    assert locate_model("some/bert@v1").folder == found.folder
    assert server.calls == [("GET", "/api/models/some/bert/revision/v1")]
    server.calls.clear()
    # A commit never changes; what is here whole needs no hub, in any of the three.
    assert locate_model("some/bert", commit).folder == found.folder
    assert locate_model("some/bert", download=False).commit == commit
    assert locate_model("some/bert@v1", download=False).commit == commit
    assert not server.calls
    assert capsys.readouterr().err == ""


# mode: (kind of error on a cold cache, words of its line, whether a warm cache is used instead)
SITUATIONS = {
    "hang": (RunError, "does not answer|gave no answer in", True),
    "drip": (RunError, "gave no answer in 1 s", True),
    "portal": (RunError, "does not answer as the hub does .a login page", True),
    "firewall": (RunError, "answers 403 Forbidden .a proxy or a login page", True),
    "429": (RunError, "fewer requests .429", True),
    "500": (RunError, "out of order .500", True),
    "proxy": (RunError, "proxy that HTTPS_PROXY or HTTP_PROXY names", True),
    "down": (RunError, "cannot be reached", True),
    "nowhere": (RunError, "its name has no address", True),
    "hang_files": (RunError, "sent no byte of a file for 1 s|does not answer", True),
    "stall": (RunError, "sent no byte of a file for 1 s", True),
    "cut": (RunError, "broke off a download", True),
    "gated": (RequestError, "gated; accept its terms at http://127.0.0.1:[0-9]+/some/bert and log in", False),
    "token": (RequestError, "no right to it .Invalid credentials", False),
    "denied": (RequestError, "no right to it .Your token does not reach", False),
    "no name": (RequestError, "no folder and no model of the hub .* has this name, or it is a private one", False),
    "no revision": (RequestError, "--revision=v9: some/bert has no branch, tag or commit of this name", False),
    "offline": (RequestError, "HF_HUB_OFFLINE .or TRANSFORMERS_OFFLINE. is set, and the hub's cache", None),
    "corrupt": (RunError, "model.safetensors came damaged twice", False),
    "full": (RunError, "takes [0-9.]+ kB and the disk has 0.0 kB left; free some space, or set HF_HOME", False),
    "filled": (UnwritableError, "the disk is full; free some space", False),
    "locked": (UnwritableError, "cannot be written", False),
}


def bring_about(situation, server, monkeypatch, folder):
    """Makes the situation so; the model that is asked for in it."""
    ways = {
        "proxy": lambda: monkeypatch.setenv("http_proxy", "http://127.0.0.1:9"),
        "down": lambda: monkeypatch.setattr(hub, "_endpoint", lambda: "http://127.0.0.1:9"),
        "nowhere": lambda: monkeypatch.setattr(hub, "_endpoint", lambda: "http://hub.invalid"),
        "offline": lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True),
        "full": lambda: monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=9)),
        "filled": lambda: fail_downloads(monkeypatch, OSError(28, "No space left on device", str(folder))),
        "locked": lambda: fail_downloads(monkeypatch, PermissionError(13, "Permission denied", str(folder))),
    }
    if situation in ways:
        ways[situation]()
    else:
        server.mode = "" if " " in situation else situation
    return {"no name": "some/bort", "no revision": "some/bert@v9"}.get(situation, "some/bert")


def fail_downloads(monkeypatch, error):
    import huggingface_hub

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_situation_has_its_line_and_ends(server, toy_bert, tmp_path, monkeypatch, situation, warm):
    kind, words, falls_back = SITUATIONS[situation]
    earlier = server.commit("some/bert", toy_bert)
    if warm:
        locate_model("some/bert")
        # What is there now has yet to be downloaded.
        server.commit("some/bert", other_weights(toy_bert, tmp_path / "moved"))
    model = bring_about(situation, server, monkeypatch, tmp_path)
    begun = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RequestWarning)
        if warm and falls_back is not False:
            assert locate_model(model).commit == earlier
        else:
            with pytest.raises(kind, match=words) as error:
                locate_model(model)
            assert "\n" not in str(error.value)
    assert time.monotonic() - begun < 3
    told = [str(warning.message) for warning in caught if warning.category is RequestWarning]
    if warm and falls_back:
        (line,) = told
        assert f"commit {earlier[:10]} from its cache on this machine is used" in line
    else:
        assert not told
    if situation == "corrupt":
        server.mode = ""
        assert locate_model(model).commit != (earlier if warm else None)


def test_a_download_that_came_damaged_is_made_again(server, toy_bert):
    server.commit("some/bert", toy_bert)
    server.mode = "corrupt_once"
    found = locate_model("some/bert")
    assert model_digest(found.folder) == model_digest(toy_bert)
    # So is one that another program took over.
    weights = (found.folder / "model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert locate_model("some/bert", download=False) is None
    assert model_digest(locate_model("some/bert").folder) == model_digest(toy_bert)


def test_repositories_without_weights_that_can_be_read_say_what_they_have(server, toy_bert, tmp_path):
    shutil.copytree(toy_bert, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    server.commit("some/bert", tmp_path / "model")
    with pytest.raises(RequestError, match=r"but pytorch_model\.bin; tfmt reads no pickle.*save_pretrained"):
        locate_model("some/bert")
    (tmp_path / "model" / "pytorch_model.bin").unlink()
    (tmp_path / "model" / "config.json").unlink()
    server.commit("some/bert", tmp_path / "model")
    with pytest.raises(RequestError, match=r"no config\.json"):
        locate_model("some/bert")
    shutil.copytree(toy_bert, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    server.commit("some/roberta", tmp_path / "other")
    with pytest.raises(RequestError, match="expected a BERT"):
        locate_model("some/roberta")
    assert not [*server.paths("safetensors"), *server.paths("bin")]


def test_revisions_are_of_hub_models_alone(toy_bert, monkeypatch, tmp_path):
    settings = {"task": "mrpc", "mode": "frozen"}
    spec = RunSpec.make(model="some/bert@refs/pr/1", **settings)
    assert (spec.model, spec.revision) == ("some/bert", "refs/pr/1")
    assert spec == RunSpec.make(model="some/bert", revision="refs/pr/1", **settings)
    assert spec.run_id(model="a") == RunSpec.make(model="some/bert", **settings).run_id(model="a")
    with pytest.raises(RequestError, match="names another revision than --revision=v2"):
        RunSpec.make(model="some/bert@v1", revision="v2", **settings)
    for model in ("demo", str(toy_bert)):
        with pytest.raises(RequestError, match="--revision=v1 means nothing for"):
            locate_model(model, "v1")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_bert, tmp_path / "bert@v1")
    assert str(locate_model("bert@v1").folder) == "bert@v1"
    with pytest.raises(RequestError, match="neither a folder nor a name"):
        locate_model("no hub name")


def test_dry_run_fetches_the_config_alone(server, toy_bert, toy_glue):
    server.commit("some/bert", toy_bert, "main", "v1")
    spec = RunSpec.make(model="some/bert@v1", data_dir=str(toy_glue), task="mrpc", mode="layernorm", max_length=32)
    assert "tuned     128 weights" in describe(spec, "runs")
    assert {path.rsplit("/", 1)[1] for path in server.paths("resolve")} == {"config.json"}
    # What was fetched for it is no model yet, and stands in the way of none.
    assert locate_model("some/bert@v1", download=False) is None
    assert locate_model("some/bert@v1").commit == server.refs["some/bert"]["v1"]


def test_what_a_sweep_found_must_stay_what_it_was(toy_bert, toy_glue, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(toy_bert, folder)
    spec = RunSpec.make(model=str(folder), data_dir=str(toy_glue), task="mrpc", mode="layernorm", max_length=32)
    request = prepare(spec, tmp_path)
    sources = Sources.from_json(request.sources.to_json())
    assert sources == request.sources
    assert prepare(spec, tmp_path, sources=sources).run_id == request.run_id
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    with pytest.raises(RequestError, match=r"model: no longer .* hidden_dropout_prob \(0\.5, was 0\.1\)"):
        prepare(spec, tmp_path, sources=sources)
    shutil.rmtree(folder)
    other_weights(toy_bert, folder)
    ended = Executor(tmp_path).execute(spec, sources)
    assert ended.status == "failed"
    assert ended.error.startswith(f"{folder / 'model.safetensors'}: no longer the model that the sweep began with")
    # Nor would it have trained on what another run loaded.
    assert prepare(spec, tmp_path).bench_key != request.bench_key
    with pytest.raises(RequestError, match=r"the data of mrpc is no longer"):
        prepare(spec, tmp_path, sources=Sources(sources.model, prepare(spec, tmp_path).model_parts, "0" * 64))


def test_a_sweep_trains_and_records_one_commit_though_main_moves(server, toy_bert, toy_glue, tmp_path):
    first = server.commit("some/bert", toy_bert)
    axes = {"task": ("mrpc",), "mode": ("layernorm",), "seed": (0, 1)}
    settings = {"data_dir": str(toy_glue), "max_length": 32, "epochs": 1, "train_limit": 32}
    sweep = Sweep(expand_grid(axes, settings | {"model": "some/bert"}), tmp_path / "runs")
    server.commit("some/bert", other_weights(toy_bert, tmp_path / "moved"))
    sweep.run(0)
    assert [path for _, path in server.calls if "api" in path] == ["/api/models/some/bert/revision/main"]
    records = find_records(tmp_path / "runs")[0]
    same = expand_grid(axes, settings | {"model": str(toy_bert)}).runs
    assert {record.run_id for record in records} == {prepare(spec, tmp_path).run_id for spec in same}
    base = load_file(toy_bert / "model.safetensors")
    for record in records:
        told = {"name": "some/bert", "revision": "", "commit": first, "sha256": model_digest(toy_bert)}
        assert record.model.model_dump() == told
        tuned = load_file(tmp_path / "runs" / record.run_id / "tuned.safetensors")
        # Two steps of Adam move a weight by no more than twice the rate; the other commit's are half as large.
        moved = [abs(tuned[name] - base[name]).max() for name in tuned if name in base]
        assert 0 < max(moved) < 0.011

    # The same command after that makes other runs, and says why.
    second = locate_model("some/bert").commit
    told = f"the same settings and data, and another base model; this one differs in the weights .commit {second[:10]}"
    with pytest.warns(RequestWarning, match=rf"^mrpc-layernorm.* has {told} of the hub, there {first[:10]}\)"):
        Sweep(expand_grid(axes, settings | {"model": "some/bert"}), tmp_path / "runs")

    # The exports name what was tuned, and find it, wherever main is now.
    run = tmp_path / "runs" / records[0].run_id
    export_run(run, tmp_path / "adapter", format="peft")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("some/bert", first)
    readme = (tmp_path / "adapter" / "README.md").read_text()
    assert f"Its base model is some/bert at commit {first}, " in readme
    assert f'revision="{first}")' in readme
    with pytest.raises(RequestError, match="digest differs"):
        read_tuned(run, model="some/bert")
