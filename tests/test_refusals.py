"""Every command says in one line what it refuses: exit status 2, nothing written, TensorFlow not even imported.

The whole table runs once, in one fresh process.
"""

import gzip
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from refusing import USUAL
from safetensors.numpy import load, save

from tfmt.runs.records import Record
from tfmt.runs.sealed import seal_json
from tfmt.spec import RunSpec

DEEP = b"[" * 100_000
LONG = "y" * 5000
BOM = b"\xef\xbb\xbf"
OWN = ("--model=model", "--task=custom", "--mode=layernorm", "--data_dir=own", "--text_columns=text",
       "--label_column=label", "--max_length=32", "--epochs=1")  # fmt: skip
CLASSES, SCORES = (*OWN, "--task_type=classification"), (*OWN, "--task_type=regression")
GRID = ("--model=model", "--task=mrpc", "--data_dir=glue", "--mode=layernorm", "--max_length=32", "--workers=0")
PREDICT = ("--run=run", "--input=texts.tsv", "--output=out.tsv")
GLUE = b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
DEV = b"text\tlabel\ngood\tp\nbad\tn\n"
KEY = "bert.encoder.layer.0.attention.self.key.weight"
SMALL, RATE = "must be a small positive number", "must be a number from 0 to below 1"
ROWS = []


def row(name, command, arguments, words, files=()):
    """One request: its name, the command line, the words of the one line, and {file that it meets: content}.

    A content is bytes, None for a folder of that name, or what makes bytes of those of the toy's file of that name; for
    a record it is what changes a good one.
    """
    assert name not in [known[0] for known in ROWS], name
    ROWS.append((name, command, list(arguments), [words] if isinstance(words, str) else words, dict(files)))


def table(name, train, words, ending="tsv", dev=DEV, arguments=CLASSES):
    """A request with a training file of one's own."""
    row(name, "train", arguments, words, files={f"own/train.{ending}": train, "own/dev.tsv": dev})


def setting(key, text):
    """The toy's config.json with one value as this text, which need be nothing that Python writes."""
    return lambda content: json.dumps(json.loads(content) | {key: "?"}).replace('"?"', text).encode()


def tensor(change):
    """The toy's weights with one tensor changed."""
    return lambda content: save((tensors := load(content)) | {KEY: change(tensors[KEY].copy())})


def holding(number):
    """What writes a number into a tensor."""

    def change(array):
        array[3, 3] = number
        return array

    return change


def without(word):
    """The toy's vocabulary without a word."""
    return lambda content: content.replace(f"{word}\n".encode(), b"")


# ---- files of data --------------------------------------------------------------------------------------------------

table("NUL in TSV", b"text\tlabel\ngood\tp\nb\0d\tn\n", ["own/train.tsv:3", "NUL"])
table("NUL in CSV", b"text,label\ngood,p\nb\0d,n\n", ["own/train.csv:3", "NUL"], "csv")
table("UTF-16", "text\tlabel\ngood\tp\n".encode("utf-16"), ["own/train.tsv:1", "utf-8"])
table("column twice", b"text\tlabel\ttext\ngood\tp\tx\n", ["own/train.tsv:1", "'text' twice"])
table("no such column", b"words\tlabel\ngood\tp\n", ["own/train.tsv:2", "'text'", "--text_columns"])
table("one class", b"text\tlabel\ngood\tp\nbad\tp\n", ["own/train.tsv", "only one class (p)"])
table("texts empty", b"text\tlabel\n\tp\n \tn\n", ["own/train.tsv", "text is empty in every row"])
table("texts empty in CSV", b'text,label\n"",p\n" ",n\n', ["own/train.csv", "text is empty"], "csv")
table("old Mac", b"text\tlabel\rgood\tp\rbad\tn\r", ["own/train.tsv:1", "carriage return"])
table("field too long", b'text,label\n"' + 140_000 * b"y" + b'",p\n', ["own/train.csv:2", "131,072"], "csv")
table("open quote", b'text,label\n"good,p\nbad,n\n', ["own/train.csv:2", "CSV"], "csv")
table("surrogate", b'{"text": "\\ud800", "label": "p"}\n', ["own/train.jsonl:1", "surrogate"], "jsonl")
table("surrogate as label", b'{"text": "good", "label": "\\udfff"}\n', ["own/train.jsonl:1", "surrogate"], "jsonl")
table(
    "key twice", b'{"text": "good", "text": "bad", "label": "p"}\n', ["own/train.jsonl:1", "'text'", "twice"], "jsonl"
)
table("deep JSON", DEEP + b"\n", ["own/train.jsonl:1", "deeply"], "jsonl")
table("long number", b'{"text": "good", "label": ' + 5000 * b"9" + b"}\n", ["own/train.jsonl:1", "JSON"], "jsonl")
table("unseen label", DEV, ["own/dev.tsv:3", "lacks: q"], dev=b"text\tlabel\ngood\tp\nbad\tq\n")
table("no rows", b"text\tlabel\n", ["own/train.tsv", "no example"])
table("empty file", b"", ["own/train.tsv", "no example"])
table("score too large", b"text\tlabel\ngood\t1\nbad\t1e39\n", ["own/train.tsv:3", "1e39", "float32"], arguments=SCORES)
table("scores equal", b"text\tlabel\ngood\t2.5\nbad\t2.5\n", ["own/train.tsv", "every label is 2.5"], arguments=SCORES,
      dev=b"text\tlabel\ngood\t2\n")  # fmt: skip
table("score not finite", b"text\tlabel\ngood\t1\nbad\tnan\n", ["own/train.tsv:3", "'nan'"], arguments=SCORES)
table("unknown encoding", DEV, ["encoding", "klingon"], arguments=(*CLASSES, "--encoding=klingon"))
table("no encoding", DEV, ["encoding"], arguments=(*CLASSES, "--encoding="))
table("NUL as encoding", DEV, ["encoding"], arguments=(*CLASSES, "--encoding=a\0b"))
row("texts twice", "train", (*CLASSES, "--text_columns=text,text"), ["text_columns", "different"])
row("label as text", "train", (*CLASSES, "--label_column=text"), ["label_column", "different"])
row("empty column", "train", (*CLASSES, "--text_columns=text,"), ["''", "--text_columns"],
    files={"own/train.tsv": DEV, "own/dev.tsv": DEV})  # fmt: skip
row("GLUE of one class", "train", USUAL, ["train.tsv", "every label is"],
    files={"glue/MRPC/train.tsv": GLUE + 20 * b"1\t0\t0\tgood\tfilm\n"})  # fmt: skip
row("GLUE, column twice", "train", USUAL, ["train.tsv:1", "'#1 String' twice"],
    files={"glue/MRPC/train.tsv": GLUE.replace(b"#2 ID", b"#1 String") + b"1\t0\t0\tgood\tfilm\n"})  # fmt: skip
row("GLUE, NUL", "train", USUAL, ["dev.tsv:2", "NUL"],
    files={"glue/MRPC/dev.tsv": GLUE + b"1\t0\t0\tgo\0d\tfilm\n"})  # fmt: skip
row("sweep, GLUE of one class", "sweep", GRID, ["train.tsv", "every label is"],
    files={"glue/MRPC/train.tsv": GLUE + 20 * b"1\t0\t0\tgood\tfilm\n"})  # fmt: skip

# ---- the base model -------------------------------------------------------------------------------------------------

for name, content, words in [
    ("deep config", DEEP, "deeply"), ("config of a list", b"[]", "JSON object"), ("no config", b"", "JSON"),
    ("config with code", b'{"auto_map": {"AutoModel": "evil.Model"}}', "auto_map"),
    ("config that is no UTF-8", b"\xff\xfe{}", "JSON"), ("BOM and no BERT", BOM + b'{"model_type": "t5"}', "t5"),
]:  # fmt: skip
    row(name, "train", USUAL, ["model/config.json", words], files={"model/config.json": content})
row("sweep, deep config", "sweep", (*GRID, "--layers=each"), ["model/config.json", "deeply"],
    files={"model/config.json": DEEP})  # fmt: skip
for key, text, words in [
    ("hidden_act", '"GELU"', ["must be one of gelu,", "'GELU'"]), ("hidden_act", "5", ["must be one of gelu,", ": 5"]),
    ("layer_norm_eps", '"1e-12"', [SMALL, "'1e-12'"]), ("layer_norm_eps", "-1e-12", [SMALL, "-1e-12"]),
    ("layer_norm_eps", "NaN", [SMALL, "nan"]), ("layer_norm_eps", "0", [SMALL, ": 0"]),
    ("hidden_dropout_prob", "-0.1", [RATE, "-0.1"]), ("attention_probs_dropout_prob", "1.0", [RATE, "1.0"]),
    ("classifier_dropout", "1.5", [RATE, "1.5"]), ("initializer_range", '"0.02"', [SMALL, "'0.02'"]),
    ("initializer_range", "-0.02", [SMALL, "-0.02"]), ("hidden_size", "9" * 9999, ["more than 4,300 digits"]),
    ("num_hidden_layers", "100000000", ["at most 1,000", "100000000"]),
    ("num_attention_heads", "3", ["hidden_size must be divisible", "hidden_size=16", "=3"]),
]:  # fmt: skip
    row(f"{key}: {text:.9}", "train", USUAL, ["model/config.json", key, *words],
        files={"model/config.json": setting(key, text)})  # fmt: skip
for key, size, words in [
    ("vocab_size", 20, ["[19, 16]", "[20, 16]"]), ("hidden_size", 18, ["[19, 16]", "[19, 18]"]),
    ("intermediate_size", 64, ["[32, 16]", "[64, 16]"]), ("max_position_embeddings", 128, ["[64, 16]", "[128, 16]"]),
    ("vocab_size", 2**31 - 1, ["[19, 16]", "[2147483647, 16]"]), ("num_hidden_layers", 3, ["2 blocks", "asks for 3"]),
]:  # fmt: skip
    row(f"{key}: {size}, which the weights have not", "train", USUAL, ["model/model.safetensors", f"({key})", *words],
        files={"model/config.json": setting(key, str(size))})  # fmt: skip
for name, change, words, commands in [
    ("NaN", holding(np.nan), ["holds 1 value", "NaN"], "train analyze"),
    ("inf", holding(np.inf), ["holds 1 value"], "train"),
    ("int8", lambda array: array.astype(np.int8), ["stored as I8", "quantised"], "train"),
    ("bool", lambda array: array > 0, ["stored as BOOL", "quantised"], "train"),
    ("float8", lambda array: array.astype(ml_dtypes.float8_e4m3fn), ["stored as F8_E4M3"], "train analyze"),
]:  # fmt: skip
    for command in commands.split():
        arguments = {"train": USUAL, "analyze": ("--figure=weights", "--model=model")}[command]
        row(f"{command}, weights of {name}", command, arguments, ["model/model.safetensors", KEY, *words],
            files={"model/model.safetensors": tensor(change)})  # fmt: skip
for name, content, words in [
    ("empty", b"", ["its vocabulary is empty"]), ("folder", None, ["model/vocab.txt: missing"]),
    *((f"without {word}", without(word), [f"model/vocab.txt: holds no {word}"])
      for word in ("[UNK]", "[CLS]", "[SEP]", "[PAD]")),
]:  # fmt: skip
    row(f"vocabulary: {name}", "train", USUAL, words, files={"model/vocab.txt": content})
for file in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
    for name, content, words in [("cut off", b'{"version": "1.0", "mod', "JSON"), ("a list", b"[]", "JSON object"),
                                 ("empty", b"", "JSON"), ("no UTF-8", b"\xff\xfe{}", "JSON")]:  # fmt: skip
        row(f"{file}: {name}", "train", USUAL, [f"model/{file}: ", words, "fetch"], files={f"model/{file}": content})
row("tokenizer.json without a model", "train", USUAL, "model: the tokenizer's files cannot be read",
    files={"model/tokenizer.json": b'{"version": "1.0"}'})  # fmt: skip
row("home in --model", "train", (*USUAL, "--model=~/none"), ["/home/none", "no such"])
row("home in --output_dir", "train", (*USUAL, "--output_dir=~/runs"), ["--output_dir", "/home/runs"],
    files={"home/runs": b""})  # fmt: skip

# ---- the command line -----------------------------------------------------------------------------------------------

for command, arguments, names in [
    ("train", USUAL, "output_dir model"), ("sweep", GRID, "output_dir model"),
    ("report", ("--table=1",), "runs output pack"), ("analyze", ("--figure=rates",), "runs output data"),
    ("predict", PREDICT, "run output input"), ("export", ("--run=run", "--output=out"), "run output"),
]:  # fmt: skip
    for name in names.split():
        row(f"{command}, empty --{name}", command, (*arguments, f"--{name}="), [f"--{name} is empty"])
        row(f"{command}, blank --{name}", command, (*arguments, f"--{name}= "), [f"--{name} is empty"])
        row(f"{command}, NUL in --{name}", command, (*arguments, f"--{name}=a\0b"), [f"--{name} holds a NUL"])
        row(f"{command}, long --{name}", command, (*arguments, f"--{name}={LONG}"), [f"--{name} is longer"])
for command, arguments in (("train", USUAL), ("sweep", GRID), ("predict", PREDICT)):
    for value in (" ", "a\0b", LONG, "\ud800"):
        row(f"{command}, --data_dir={value!r:.9}", command, (*arguments, f"--data_dir={value}"), "--data_dir")
for value in ("nowhere", "glue/MRPC/train.tsv", "two\nlines"):
    row(f"--data_dir={value!r}", "train", (*USUAL, f"--data_dir={value}"), ["--data_dir", value.split("\n")[0]])
row("sweep, layers of an empty model", "sweep", (*GRID, "--layers=each", "--model="), "--model is empty")
row("empty entry in --fisher_from", "train", (*USUAL, "--mode=fisher", "--fisher_from=a,,b"), "--fisher_from is empty")
for name in (
    "seed",
    "layers",
    "learning_rate",
    "mode",
    "task",
    "revision",
    "text_columns",
    "label_column",
    "precision",
):
    row(f"long --{name}", "train", (*USUAL, f"--{name}={LONG}"), name)
    row(f"line breaks in --{name}", "train", (*USUAL, f"--{name}=1\n2\r\n\u2028"), [name])
for name, value in [("seed", "9" * 5000), ("seed", "-1"), ("seed", 2**64), ("seed", "1.5"), ("layers", "9" * 5000),
                    ("learning_rate", "nan"), ("learning_rate", "inf"), ("learning_rate", "-1"), ("epochs", 10**30),
                    ("max_length", 10**30), ("batch_size", 10**30), ("warmup_ratio", "nan"), ("mask_size", "4"),
                    ("mask_fraction", "0.5"), ("outlier_pool", "evil"), ("outlier_pool", "beta")]:  # fmt: skip
    row(f"--{name}={value!s:.9}", "train", (*USUAL, f"--{name}={value}"), name)
    if name not in ("mask_size", "mask_fraction", "outlier_pool") and value != "4":
        row(f"sweep, --{name}={value!s:.9}", "sweep", (*GRID, f"--{name}={value}"), name)
for mode, name, value in [
    ("outliers", "mask_size", 0), ("outliers", "mask_size", 33), ("outliers", "mask_size", 10**30),
    ("fisher", "mask_fraction", 0), ("fisher", "mask_fraction", 1.5), ("fisher", "mask_fraction", "nan"),
]:  # fmt: skip
    for command, arguments in (("train", USUAL), ("sweep", GRID)):
        asked = (*arguments, f"--mode={mode}", f"--{name}={value}")
        row(f"{command}, {mode}, --{name}={value!s:.9}", command, asked, name)
for asked, words in [
    ("--optimizer=adagrad", ["--optimizer", "adamw"]), ("--optimizer=sgd", ["--optimizer=sgd", "--learning_rate"]),
    ("--weight_decay=0.1", ["--weight_decay=0.1", "--optimizer=adamw"]),
    ("--optimizer=lion --learning_rate=1e-3 --weight_decay=-1", ["weight_decay", "-1"]),
    ("--clip_norm=-1", ["clip_norm", "-1"]), ("--clip_norm=nan", ["clip_norm"]),
    ("--early_stopping=-1", ["early_stopping", "-1"]), ("--early_stopping=1.5", ["early_stopping"]),
]:  # fmt: skip
    for command, arguments in (("train", USUAL), ("sweep", GRID)):
        row(f"{command}, {asked}", command, (*arguments, *asked.split()), words)
row("epsilon of another optimizer", "train", (*USUAL, "--optimizer=sgd", "--learning_rate=0.1", "--adam_epsilon=1e-8"),
    ["--adam_epsilon", "--optimizer=sgd", "leave it out"])  # fmt: skip
row("early stopping behind the end", "train", (*USUAL, "--epochs=3", "--early_stopping=3"),
    ["--early_stopping=3", "--epochs=3", "leave it out"])  # fmt: skip
row("flagfile of an editor", "train", ("--flagfile=bom.flags",), "--seed", files={
    "bom.flags": BOM + "\r\n".join([*USUAL, "--seed=x"]).encode()})  # fmt: skip
row("flagfile that is no text", "train", ("--flagfile=bad.flags",), "bad.flags", files={"bad.flags": b"\xff\xfe-"})
row("long name of a flagfile", "train", (f"--flagfile={LONG}",), "--flagfile")
row("NUL in the name of a flagfile", "train", ("--flagfile=a\0b",), "--flagfile")
row("long unknown flag", "train", (*USUAL, f"--{LONG}=1"), "Unknown")
row("long argument", "train", (*USUAL, LONG), "unexpected argument")

# ---- what cannot be written, and what lies there already ------------------------------------------------------------

row("a file for --output_dir", "train", (*USUAL, "--output_dir=file"), "--output_dir", files={"file": b""})
row("a file for a sweep's --output_dir", "sweep", (*GRID, "--output_dir=file"), "--output_dir", files={"file": b""})
row("report into no folder", "report", ("--runs=study", "--table=runs", "--output=none/out"), ["--output", "no folder"])
row("report into a folder", "report", ("--runs=study", "--table=runs", "--output=glue"), ["--output", "folder"])
row("pack into no folder", "report", ("--runs=study", "--pack=none/a.gz"), ["--pack", "no folder"])
row("pack and table", "report", ("--runs=study", "--pack=a.gz", "--table=runs"), ["--table", "--pack"])
row("pack as a table", "report", ("--runs=study", "--pack=a.gz", "--format=csv"), ["--format", "--pack"])
row("command and table", "report", ("--runs=study", "--command=one", "--table=runs"), ["--table", "--command"])
row("command of no run", "report", ("--runs=run", "--command=two"), ["--command=two", "no run", "one"])
row("command of an empty name", "report", ("--runs=run", "--command="), "--command")
row("difference of one run", "report", ("--runs=run", "--diff=one"), ["--diff=one", "two runs"])
row("difference of three runs", "report", ("--runs=run", "--diff=one,one,one"), ["--diff", "two runs"])
row("difference of no run", "report", ("--runs=run", "--diff=one,two"), ["--diff=two", "no run"])
row("difference by an epoch", "report", ("--runs=run", "--diff=one,one", "--epoch=last"), ["--epoch", "--diff"])
row("page into no folder", "report", ("--runs=study", "--html=none/a.html"), ["--html", "no folder"])
row("page and table", "report", ("--runs=study", "--html=a.html", "--table=1"), ["--table", "--html"])
row("report below a file", "report", ("--runs=study", "--table=runs", "--output=file/out"), ["--output=file/out"],
    files={"file": b""})  # fmt: skip
for value, words in [("a", "expected seeds"), ("-1", "expected seeds"), ("0,", "expected seeds"),
                     ("7", "no run has seed 7"), ("0", "no seed is left"), ("9" * 5000, "expected seeds")]:  # fmt: skip
    for name in ("choose_on", "report_on"):
        asked = ("--runs=run", "--table=1", f"--{name}={value}")
        row(f"report, --{name}={value:.9}", "report", asked, [f"--{name}", words])
row("report, a seed in both parts", "report", ("--runs=run", "--claims", "--choose_on=0", "--report_on=0"), "seed 0")
row("report, no such protocol", "report", ("--runs=run", "--table=1", "--protocol=both"), ["--protocol", "crossfit"])
row("figure into no folder", "analyze", ("--runs=study", "--figure=rates", "--output=none/a.png"), ["--output"])
row("figure of another kind", "analyze", ("--runs=study", "--figure=rates", "--output=a.doc"), ["--output", ".doc"])
row("numbers into no folder", "analyze", ("--runs=study", "--figure=rates", "--data=none/a.csv"), ["--data"])
for command, arguments in (("report", ("--table=runs",)), ("analyze", ("--figure=rates",))):
    row(f"{command}, no runs", command, (*arguments, "--runs=none"), ["none", "no such folder"])
    row(f"{command}, none beside some", command, (*arguments, "--runs=run,none"), ["none", "no such folder"])
    row(f"{command}, an empty name beside some", command, (*arguments, "--runs=run,"), "--runs is empty")
    row(f"{command}, no pack", command, (*arguments, "--runs=texts.tsv"), ["texts.tsv: not a packed study"])
    row(f"{command}, pack of nothing", command, (*arguments, "--runs=a.gz"), ["a.gz:1: the file is empty"],
        files={"a.gz": gzip.compress(b"")})  # fmt: skip
    row(f"{command}, pack of something else", command, (*arguments, "--runs=a.gz"), ["a.gz:1: no line of a packed"],
        files={"a.gz": gzip.compress(b"[1]")})  # fmt: skip
    row(f"{command}, no records", command, (*arguments, "--runs=glue"), ["--runs=glue", "no record"])

row("audit of no run", "audit", ("--runs=run", "--run=two"), ["--run=two", "no run"])
row("audit of another arithmetic", "audit", ("--runs=old", "--run=one"), ["arithmetic 4", "5"],
    files={"old/record.json": lambda record: record["origin"].update(arithmetic=4)})  # fmt: skip
row("audit of a failed run", "audit", ("--runs=old", "--run=one"), ["one", "failed"],
    files={"old/record.json": lambda record: record.update(status="failed")})  # fmt: skip
row("audit with another model", "audit", ("--runs=run", "--run=one", "--data_dir=glue"), ["--model", "not the base"])
row("audit of no folder", "audit", ("--runs=none",), ["none", "no such folder"])
row("threads for a list", "audit", ("--runs=run", "--threads=2"), ["--threads", "--run"])
row("negative threads", "audit", ("--runs=run", "--run=one", "--threads=-1"), ["threads"])
for name, content, words in [
    ("deep", DEEP, []), ("a list", b"[]", []), ("empty", b"", []), ("cut off", b'{"schema": 1, "run', []),
    ("schema 9", b'{"schema": 9}', ["schema 9"]), ("no UTF-8", b"\xff\xfe{}", []),
    ("score 7.5", lambda record: record["result"].update(score_best=7.5), ["score_best"]),
    ("no spec", lambda record: record.pop("spec"), ["spec"]),
    ("unknown field", lambda record: record.update(more=1), ["more"]),
    ("another mode", lambda record: record["spec"].update(mode="lora"), ["mode"]),
    ("NaN", lambda record: record["result"].update(score_last=float("nan")), ["score_last"]),
]:  # fmt: skip
    for command, arguments, place in [
        ("train", USUAL, "runs/RUN_ID"), ("predict", PREDICT, "run"), ("export", ("--run=run", "--output=out"), "run"),
        ("report", ("--runs=study", "--table=runs"), "study/one"),
        ("analyze", ("--runs=study", "--figure=rates"), "study/one"),
    ]:  # fmt: skip
        row(f"{command}, record: {name}", command, arguments, ["record.json", *words],
            files={f"{place}/record.json": content})  # fmt: skip
for name, content in [("deep", DEEP), ("a list", b"[]"), ("empty", b""), ("no UTF-8", b"\xff\xfe{}")]:
    row(f"spec.json: {name}", "train", USUAL, ["spec.json", "broken"], files={"runs/RUN_ID/spec.json": content})
for command, arguments in (("export", ("--run=run", "--output=out")), ("predict", PREDICT)):
    for name, content in [
        ("a list", b"[]"), ("no run's", seal_json({"more": 1}).encode()),
        ("changed", seal_json({"identity": {"seed": 0}}).replace(": 0", ": 1").encode()),
    ]:  # fmt: skip
        row(f"{command}, spec.json: {name}", command, arguments, ["run/spec.json: broken", "delete the file"],
            files={"run/spec.json": content})  # fmt: skip
row(
    "spec.json of another run",
    "train",
    USUAL,
    ["spec.json", "another run"],
    files={"runs/RUN_ID/spec.json": b'{"identity": {}}'},
)
row("weights that were not kept", "predict", PREDICT, ["tuned.safetensors", "missing"])
row("export of no weights", "export", ("--run=run", "--output=out"), ["tuned.safetensors", "missing"])
row("export from another base model", "export", ("--run=run", "--output=out"), "not the base model",
    files={"run/tuned.safetensors": b"none"})  # fmt: skip
row(
    "one setting to compare", "report", ("--runs=study", "--compare=layernorm"), ["--compare=layernorm", "two settings"]
)
row("nothing to compare", "report", ("--runs=study", "--compare="), ["--compare=", "two settings"])
row("setting compared with itself", "report", ("--runs=study", "--compare=full,full"), ["two different settings"])
for name, words in [
    ("lora", "'lora' is no mode"),
    ("outliers:16", "outliers:field=value"),
    ("full", "there is layernorm"),
]:
    row(f"compare {name}", "report", ("--runs=study", f"--compare=layernorm,{name}"), words,
        files={"study/one/record.json": lambda record: None})  # fmt: skip
row("predict for nothing", "predict", ("--run=run", "--output=out.tsv"), "--split")


def make_record(toy_bert):
    spec = RunSpec.make(model=str(toy_bert), task="mrpc", mode="layernorm")
    origin = {"tfmt": "0.1.0", "arithmetic": 5, "packages": {}, "python": "3", "git_commit": None, "git_dirty": None,
              "model_sha256": "a", "data_sha256": "b", "data_notes": {}, "started": "", "finished": ""}  # fmt: skip
    result = {"score_name": "f1", "score_last": 0.5, "score_best": 0.5, "best_epoch": 1, "collapsed": False,
              "epochs": [], "examples": {"train": 1}, "predicted": {}}  # fmt: skip
    absent = dict.fromkeys(("error", "parameters", "cost", "proof", "change"))
    record = {"schema": 1, "run_id": "one", "status": "completed", "spec": json.loads(spec.to_json()),
              "result": result, "origin": origin} | absent  # fmt: skip
    assert Record.model_validate_json(json.dumps(record)).to_json()
    return record


@pytest.fixture(scope="module")
def results(toy_bert, toy_glue, tmp_path_factory):
    """What came of every row: (status, standard output, standard error, files that changed, TensorFlow imported)."""
    pattern, work = tmp_path_factory.mktemp("pattern"), tmp_path_factory.mktemp("work")
    shutil.copytree(toy_bert, pattern / "model")
    shutil.copytree(toy_glue, pattern / "glue")
    (pattern / "run").mkdir()
    (pattern / "run" / "record.json").write_text(json.dumps(make_record(toy_bert)))
    (pattern / "texts.tsv").write_text("sentence1\tsentence2\ngood\tbad\n")
    requests = []
    for _, command, arguments, _, files in ROWS:
        written = {}
        for name, content in files.items():
            if callable(content) and name.startswith("model/"):
                content = content((toy_bert / Path(name).name).read_bytes())
            elif callable(content):
                record = make_record(toy_bert)
                content(record)
                content = json.dumps(record).encode()
            written[name] = content
        requests.append((command, arguments, written))
    rows = tmp_path_factory.mktemp("rows") / "rows"
    rows.write_bytes(pickle.dumps(requests))
    program = [sys.executable, str(Path(__file__).with_name("refusing.py")), str(rows), str(pattern), str(work)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{len(ROWS)}\n"), done.stderr
    found = pickle.loads(rows.read_bytes())
    return {known[0]: result for known, result in zip(ROWS, found, strict=True)}


@pytest.mark.parametrize(("name", "command", "words"), [(name, command, words) for name, command, _, words, _ in ROWS])
def test_refused_in_one_line(results, name, command, words):
    status, out, err, changed, tensorflow = results[name]
    assert status == 2, err
    assert out == ""
    assert err.startswith(f"tfmt-{command}: ")
    assert (err.count("\n"), len(err.splitlines())) == (1, 1)
    assert len(err) < 1200
    for word in words:
        assert word in err
    assert changed == []
    assert not tensorflow


def test_every_command_is_asked():
    assert {command for _, command, *_ in ROWS} == {"train", "sweep", "predict", "export", "report", "analyze", "audit"}
