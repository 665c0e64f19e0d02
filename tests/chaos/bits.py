"""A flipped bit at a random place of every file that tfmt reads back."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
from pathlib import Path

from processes import Ended
from world import Trial, World, copy

from tfmt.errors import RequestError
from tfmt.runs.records import read_record
from tfmt.tensors import read_tensors

PARTS_FILE = "checkpoint/fisher.safetensors"
AFTER_EPOCHS = 6  # of an interrupted run, at the least


def bit_trial(trial: Trial) -> None:
    """One of the kinds below, in turn."""
    what, kind = KINDS[trial.number % len(KINDS)]
    trial.found.what = f"flipped bit, {what}"
    kind(trial)


def flip(trial: Trial, path: Path) -> None:
    """Flips one bit of a file, in place."""
    size = path.stat().st_size
    # Half of them in the last two thirds, where arrays lie: headers are long in files of tiny arrays.
    first = trial.random.choice((0, size // 3))
    place, bit = trial.random.randrange(first, size), trial.random.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
    trial.found.done += 1
    trial.found.notes.append(f"{path.relative_to(trial.folder)}: bit {bit} of byte {place} of {size:,}")


def interrupted(world: World, mode: str) -> Path:
    """Output of a run that was killed at the end of an epoch whose weights were not the best, so that both count."""
    return world.once(f"interrupted {mode}", lambda: _interrupt(world, mode))


def _interrupt(world: World, mode: str) -> Path:
    trial = Trial(world, f"interrupted:{mode}")
    victim = trial.start(world.train(mode, trial))

    def is_between() -> bool:
        states = []
        for path in trial.output.glob("*/checkpoint/state*.safetensors"):
            try:
                states.append(read_tensors(path)[1])
            except RequestError:  # it is being replaced
                return False
        latest = max(states, key=lambda state: state["steps"], default=None)
        return latest is not None and latest["epoch"] >= AFTER_EPOCHS and latest["kept_epoch"] < latest["epoch"]

    if not victim.wait_until(is_between, pause=0.002):
        raise SystemExit(f"chaos: no checkpoint of {mode} to flip a bit of: {victim.end().last}")
    victim.send(signal.SIGKILL)
    victim.end()
    return trial.output


# ---- runs that go on from a flipped bit ----------------------------------------------------------------------------


def _state(trial: Trial) -> None:
    _resume(trial, "layernorm", "*/checkpoint/state*")
    for path in trial.output.glob("*/record.json"):
        if not json.loads(path.read_text())["cost"]["resumed"]:
            trial.found.lost.append("it began anew, and not from the checkpoint before the damaged one")


def _kept(trial: Trial) -> None:
    _resume(trial, "layernorm", "*/checkpoint/kept.*.safetensors")


def _fisher_resumed(trial: Trial) -> None:
    _resume(trial, "fisher", "*/fisher.safetensors")


def _fisher_parts(trial: Trial) -> None:
    """What an estimation of Fisher information has left that died after the first of it was stored."""
    copy(trial.world.once("interrupted parts", lambda: _interrupt_estimation(trial.world)), trial.output)
    (path,) = trial.output.glob(f"*/{PARTS_FILE}")
    flip(trial, path)
    _judge_run(trial, trial.run_warm(trial.world.train("fisher", trial)), "fisher", path)


def _interrupt_estimation(world: World) -> Path:
    trial = Trial(world, "interrupted:parts")
    victim = trial.start(world.train("fisher", trial))
    if not victim.wait_until(lambda: any(trial.output.glob(f"*/{PARTS_FILE}")), pause=0.001):
        raise SystemExit(f"chaos: no Fisher information to flip a bit of: {victim.end().last}")
    victim.send(signal.SIGKILL)
    victim.end()
    return trial.output


def _spec_of_interrupted(trial: Trial) -> None:
    _resume(trial, "layernorm", "*/spec.json")


def _resume(trial: Trial, mode: str, pattern: str) -> None:
    copy(interrupted(trial.world, mode), trial.output)
    path = trial.random.choice(sorted(trial.output.glob(pattern)))
    flip(trial, path)
    _judge_run(trial, trial.run_warm(trial.world.train(mode, trial)), mode, path)


def _tokens(trial: Trial) -> None:
    copy(trial.world.whole("layernorm").cache, trial.cache)
    path = trial.random.choice(sorted(trial.cache.glob("tokens-*")))
    flip(trial, path)
    _judge_run(trial, trial.run_warm(trial.world.train("layernorm", trial)), "layernorm", path)


def _remembered(trial: Trial) -> None:
    """Digests and the like, which the cache keeps of files that have not changed; a dry run shows the run's id."""
    copy(trial.world.whole("layernorm").cache, trial.cache)
    command = [*trial.world.train("layernorm", trial), "--dry_run"]
    expected = trial.world.once("remembered", lambda: _said(trial, command))
    files = sorted(path for path in trial.cache.rglob("*") if path.is_file() and path.parent != trial.cache)
    flip(trial, path := trial.random.choice(files))
    _judge_words(trial, command, path, expected)


def _said(trial: Trial, command: list[str]) -> str:
    """What a command says, wherever the trial lies."""
    ended = trial.run_warm(command)
    if ended.status:
        raise SystemExit(f"chaos: {command[2]} ended with {ended.status} on undamaged files: {ended.said}")
    return _lasting(trial, ended)


def _lasting(trial: Trial, ended: Ended) -> str:
    """What a command says, without what it says where it is slow."""
    lines = ended.said.replace(str(trial.folder), "").splitlines()
    return "\n".join(line for line in lines if ": looks for " not in line)


def _names(trial: Trial, ended: Ended, path: Path, expected: str) -> bool:
    """Whether a line that is not always said names a file; a run's last line names its record."""
    usual = set(expected.splitlines())
    return any(path.name in line for line in _lasting(trial, ended).splitlines() if line not in usual)


def _judge_words(trial: Trial, command: list[str], path: Path, expected: str) -> None:
    ended = trial.run_warm(command)
    if ended.status:
        _judge_refusal(trial, ended, path)
    elif _lasting(trial, ended) == expected:
        trial.found.identical += 1
    elif _names(trial, ended, path, expected):
        trial.found.noticed += 1
    else:
        trial.found.unnoticed.append(f"{path.relative_to(trial.folder)}: another word, and none on the file")


def _judge_run(trial: Trial, ended: Ended, mode: str, path: Path) -> None:
    """The command refuses with a line that names the file, or its end is as if nothing were."""
    if ended.status:
        _judge_refusal(trial, ended, path)
        return
    before = len(trial.found.differing)
    trial.compare(trial.world.whole(mode).output, allowed=("damaged", "broken", "set-aside"))
    if len(trial.found.differing) > before and path.name not in ended.said:
        trial.found.unnoticed.append(f"{path.name}: another end, and not a word")


def _judge_refusal(trial: Trial, ended: Ended, path: Path) -> None:
    trial.look_at(ended)
    if ended.status == 2 and (path.name in ended.last or str(path.parent) in ended.last):
        trial.found.noticed += 1
    else:
        trial.found.unnoticed.append(f"{path.name}: ended with {ended.status} and does not name it: {ended.last}")


# ---- finished runs that are read -----------------------------------------------------------------------------------


def _ended_run(trial: Trial, mode: str = "layernorm") -> Path:
    copy(trial.world.whole(mode).output, trial.output)
    (folder,) = trial.output.iterdir()
    return folder


def _tuned_exported(trial: Trial) -> None:
    _read(trial, "export", "tuned.safetensors")


def _masked_exported(trial: Trial) -> None:
    _read(trial, "export", "tuned.safetensors", "fisher")


def _tuned_predicted(trial: Trial) -> None:
    _read(trial, "predict", "tuned.safetensors")


def _distributions_drawn(trial: Trial) -> None:
    _read(trial, "analyze", "distributions.json", "full")


def _record_predicted(trial: Trial) -> None:
    _read(trial, "predict", "record.json")


def _record_met_by_sweep(trial: Trial) -> None:
    """A sweep meets a run that has ended: it says that the record is damaged, or tells of the same end."""
    folder = _ended_run(trial)
    command = trial.world.sweep_of_one(trial)
    expected = trial.world.once("sweep of one", lambda: _said(trial, command))
    flip(trial, path := folder / "record.json")
    ended = trial.run_warm(command)
    if ended.status == 1 and f"{path}" in ended.said:  # one of its runs has failed, which is no wrong request
        trial.found.noticed += 1
    elif ended.status:
        _judge_refusal(trial, ended, path)
    elif _lasting(trial, ended) != expected:
        trial.found.unnoticed.append(f"{path.name}: a sweep tells of another end, without a word")
    else:
        trial.found.identical += 1
        _compare_records(trial)


def _record_met_by_run(trial: Trial) -> None:
    """The command of a run that has ended shows its record."""
    folder = _ended_run(trial)
    command = trial.world.train("layernorm", trial)
    expected = trial.world.once("met by a run", lambda: _said(trial, command))
    flip(trial, path := folder / "record.json")
    _judge_words(trial, command, path, expected)
    if trial.found.identical:
        _compare_records(trial)


def _spec_of_end(trial: Trial) -> None:
    _read(trial, "export", "spec.json")


def _record_of_end(trial: Trial) -> None:
    _read(trial, "export", "record.json")


def _record(trial: Trial) -> None:
    _read(trial, "report", "record.json")
    if trial.found.identical:  # the table shows a part of what is read
        _compare_records(trial)


def _compare_records(trial: Trial) -> None:
    """What was said is as it was: so has to be all that was read."""
    (path,) = trial.output.glob("*/record.json")
    (whole,) = trial.world.whole("layernorm").output.glob("*/record.json")
    got, expected = (read_record(folder.parent).model_dump() for folder in (path, whole))
    if changed := [part for part in expected if got[part] != expected[part]]:
        trial.found.identical = 0
        trial.found.unnoticed.append(f"record.json: read with another {', '.join(changed)} without a word")


def _read(trial: Trial, command: str, name: str, mode: str = "layernorm") -> None:
    """Reads a finished run with a flipped bit, and compares with what is read without."""
    folder = _ended_run(trial, mode)
    expected, said = trial.world.once(f"{command} {folder.name}", lambda: _content(trial, command, folder))
    path = folder / name
    flip(trial, path)
    ended = trial.run_warm(_reading(trial, command, folder))
    if ended.status and not (command == "report" and path.name in ended.said):
        _judge_refusal(trial, ended, path)
    elif _names(trial, ended, path, said):
        trial.found.noticed += 1
    elif (content := _digests(trial)) == expected:
        trial.found.identical += 1
    else:
        changed = sorted(name for name in content.keys() | expected.keys() if content.get(name) != expected.get(name))
        trial.found.unnoticed.append(f"{path.name}: tfmt-{command} writes another {', '.join(changed)} without a word")


def _fisher_united(trial: Trial) -> None:
    """A dry run reads the masks of other runs, without TensorFlow."""
    folder = _ended_run(trial, "fisher")
    train = [flag for flag in trial.world.train("fisher", trial) if not flag.startswith(("--mask_", "--fisher_"))]
    command = [*train, f"--fisher_from={folder}", "--dry_run"]
    expected = trial.world.once("fisher united", lambda: _said(trial, command))
    flip(trial, folder / "fisher.safetensors")
    _judge_words(trial, command, folder / "fisher.safetensors", expected)


def _reading(trial: Trial, command: str, folder: Path, model: Path | None = None) -> list[str]:
    made = trial.folder / "read"
    flags = {
        "export": [f"--run={folder}", f"--output={made}"],
        "predict": [f"--run={folder}", "--split=validation", f"--output={made}"],
        "report": [f"--runs={folder.parent}", "--table=runs", "--format=csv", f"--output={made}"],
        "analyze": [f"--runs={folder.parent}", "--figure=weights", f"--data={made}/numbers.csv",
                    f"--output={trial.folder}/figure.png"],
    }[command]  # fmt: skip
    if command == "analyze":
        made.mkdir(exist_ok=True)
    return [sys.executable, "-m", f"tfmt.{command}", *flags, *([f"--model={model}"] if model else [])]


def _content(trial: Trial, command: str, folder: Path) -> tuple[dict[str, str], str]:
    """What a command writes and says of an undamaged run."""
    ended = trial.run_warm(_reading(trial, command, folder))
    if ended.status:
        raise SystemExit(f"chaos: tfmt-{command} ended with {ended.status} on an undamaged run: {ended.said}")
    written = _digests(trial)
    made = trial.folder / "read"
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    return written, _lasting(trial, ended)


def _orderly(path: Path) -> bytes:
    """A file's content; safetensors writes the notes of a header in any order."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        start = 8 + int.from_bytes(content[:8], "little")
        content = json.dumps(json.loads(content[8:start]), sort_keys=True).encode() + content[start:]
    return content


def _digests(trial: Trial) -> dict[str, str]:
    """sha256 of what a command wrote, by name, wherever the trial lies."""
    here, found = str(trial.folder).encode(), {}
    made = trial.folder / "read"
    for path in [made, *made.rglob("*")]:
        if path.is_file():
            found[path.name] = hashlib.sha256(_orderly(path).replace(here, b"")).hexdigest()
    return found


# ---- the base model ------------------------------------------------------------------------------------------------


def _own_model(trial: Trial) -> Path:
    copy(trial.world.model, trial.folder / "bert")
    return trial.folder / "bert"


def _model_exported(trial: Trial) -> None:
    folder, model = _ended_run(trial), _own_model(trial)
    flip(trial, model / "model.safetensors")
    ended = trial.run_warm(_reading(trial, "export", folder, model))
    if ended.status:
        _judge_refusal(trial, ended, model / "model.safetensors")
    else:
        trial.found.unnoticed.append("model.safetensors: tfmt-export takes a changed base model without a word")


def _model_under_run(trial: Trial) -> None:
    """The base model's file changes while a run is at it."""
    model, whole = _own_model(trial), trial.world.whole("layernorm")
    victim = trial.start(trial.world.train("layernorm", trial, model))
    moment = trial.random.uniform(0.0, whole.seconds)
    victim.wait_for_seconds(moment)
    flip(trial, model / "model.safetensors")
    ended = victim.end()
    if ended.status:
        # Whichever command found it: wrong from the start (2), or changed while it ran (1).
        said = "model.safetensors" in ended.last or str(model) in ended.last
        if said:
            trial.found.noticed += 1
        else:
            trial.found.unnoticed.append(f"model.safetensors: ended with {ended.status}: {ended.last}")
        return
    (folder,) = trial.output.iterdir()
    (expected,) = whole.output.iterdir()
    told = json.loads((folder / "record.json").read_text())["origin"]["model_sha256"]
    if (
        folder.name != expected.name
        and told != json.loads((expected / "record.json").read_text())["origin"]["model_sha256"]
    ):
        trial.found.noticed += 1  # it began with the changed file: another run, of another id, that says so
        return
    _judge_run(trial, ended, "layernorm", model / "model.safetensors")


KINDS = (
    ("state of a checkpoint", _state),
    ("record.json, met by a sweep", _record_met_by_sweep),
    ("tuned.safetensors, exported", _tuned_exported),
    ("masks of other runs, united", _fisher_united),
    ("record.json, in a table", _record),
    ("kept weights of a checkpoint", _kept),
    ("tokens in the cache", _tokens),
    ("spec.json, exported", _spec_of_end),
    ("distributions.json, drawn", _distributions_drawn),
    ("digests in the cache", _remembered),
    ("tuned.safetensors, predicted with", _tuned_predicted),
    ("fisher.safetensors of a killed run", _fisher_resumed),
    ("record.json, predicted with", _record_predicted),
    ("parts of Fisher information", _fisher_parts),
    ("record.json, exported", _record_of_end),
    ("spec.json of a killed run", _spec_of_interrupted),
    ("base model, exported", _model_exported),
    ("masked tuned.safetensors, exported", _masked_exported),
    ("record.json, met by its run", _record_met_by_run),
    ("base model under a run", _model_under_run),
)
