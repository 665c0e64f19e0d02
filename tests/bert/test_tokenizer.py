"""The model's own tokenizer: the ids of transformers' AutoTokenizer, before a run and from what is exported."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizerFast

from tfmt.bert.base_weights import model_digest
from tfmt.bert.tokenizer import (
    describe_tokenizer,
    keeps_case,
    load_tokenizer,
    save_tokenizer,
    tokenizer_digest,
    uses_bert_class,
)
from tfmt.errors import RequestError, RequestWarning

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Berlin", "berlin", "cafe", "café", "Café", "东", "京", "东京",
         "the", "The", "film", "##s", "##e", "un", "##happy", "!", "<", ">", "e", "1", "x", "USER", "user", "##er",
         "[unused1]", "naive", "naïve", "İ", "i"]  # fmt: skip
FIRST = ["Berlin berlin BERLIN", "Café café cafe\u0301 naïve", "东京 the films 东", "The <e1> unhappy </e1> USERs !",
         "[MASK] x [unused1] [CLS]", "  the\tfilm\u200b\u00a0İ ", "", "the film " * 9]  # fmt: skip
SECOND = ["the film", "Berlin !", "", "<e1>x</e1>", "USER", "The The The The The", "x 1", "berlin " * 9]
SPLIT = [["Berlin", "café", "unhappy", "<e1>"], ["东京films", "\u200b", "The"], ["USER", "x1", "film!"]]


def write_json(folder, name, content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def word_pieces(normalizer):
    """A tokenizer as the tokenizers library saves it."""
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(WORDS[:5])
    return made


NAMES = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def vocabulary_alone(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")


def cased_vocabulary(folder):
    vocabulary_alone(folder)
    write_json(folder, "tokenizer_config.json", {"do_lower_case": False})


def accents_kept(folder):
    vocabulary_alone(folder)
    settings = {"strip_accents": False, "tokenize_chinese_chars": False, "do_lower_case": True}
    write_json(folder, "tokenizer_config.json", settings | {"tokenizer_class": "BertTokenizer"})


def old_added_tokens(folder):
    cased_vocabulary(folder)
    write_json(folder, "added_tokens.json", {"<e1>": len(WORDS), "</e1>": len(WORDS) + 1, "USERs": len(WORDS) + 2})
    special = NAMES | {"additional_special_tokens": ["<e1>", "</e1>"], "mask_token": {
        "content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}}  # fmt: skip
    write_json(folder, "special_tokens_map.json", special)


def saved_with_added_tokens(folder):
    vocabulary_alone(folder)
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False, truncation_side="left")
    tokenizer.add_tokens(["USERs", "un happy"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e1>", "</e1>"]})
    tokenizer.save_pretrained(folder)


def cased_file(folder, name="PreTrainedTokenizerFast", **more):
    word_pieces(normalizers.BertNormalizer(lowercase=False)).save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": name, **NAMES, **more})


def no_normalizer(folder):
    word_pieces(None).save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES})


def other_normalizer(folder):
    word_pieces(normalizers.Sequence([normalizers.NFC(), normalizers.Replace("e1", "x")])).save(
        str(folder / "tokenizer.json")
    )
    config = json.loads((folder / "config.json").read_text())
    write_json(folder, "config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(folder, "special_tokens_map.json", NAMES)


def lower_cased_by_default(folder):
    """Transformers lower-cases here, whatever tokenizer.json says, because a BertTokenizer does."""
    word_pieces(normalizers.BertNormalizer(lowercase=False)).save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})


def fixed_length(folder):
    made = word_pieces(normalizers.BertNormalizer(lowercase=True))
    made.enable_truncation(5)
    made.enable_padding(length=5)
    made.save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True})


def of_another_model(folder):
    """Byte-level pieces whose pairs have one token type."""
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    write_json(folder, "vocab.json", {symbol: i for i, symbol in enumerate(symbols)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True})


KINDS = [vocabulary_alone, cased_vocabulary, accents_kept, old_added_tokens, saved_with_added_tokens, cased_file,
         no_normalizer, other_normalizer, lower_cased_by_default, fixed_length, of_another_model]  # fmt: skip


@pytest.fixture
def folder(make_toy_bert, tmp_path):
    """A model folder with rows enough and no tokenizer."""
    made = make_toy_bert(tmp_path / "bert", vocab_size=300)
    (made / "vocab.txt").unlink()
    return made


def encode(tokenizer):
    """What a tokenizer makes of texts alone, of pairs, cut, and of words."""
    some = [text for text in FIRST if text]
    calls = [
        tokenizer(FIRST, return_token_type_ids=True),
        tokenizer(FIRST, SECOND, return_token_type_ids=True),
        tokenizer(FIRST, SECOND, truncation="longest_first", max_length=12, return_token_type_ids=True),
        tokenizer(some, truncation="longest_first", max_length=7, return_token_type_ids=True),
        tokenizer(SPLIT, is_split_into_words=True, truncation="longest_first", max_length=9),
    ]
    found = [(call["input_ids"], call.get("token_type_ids")) for call in calls]
    return [*found, [calls[-1].word_ids(i) for i in range(len(SPLIT))], tokenizer.pad_token_id]


@pytest.mark.filterwarnings("ignore::tfmt.errors.RequestWarning")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_ids_are_those_of_auto_tokenizer_before_a_run_and_after_its_export(folder, tmp_path, kind):
    kind(folder)
    expected = encode(AutoTokenizer.from_pretrained(folder))
    assert encode(load_tokenizer(folder)) == expected
    adapter, whole = tmp_path / "adapter", tmp_path / "whole"
    for target in (adapter, whole):  # an adapter's folder has no config.json
        target.mkdir()
        save_tokenizer(folder, target)
    shutil.copyfile(folder / "config.json", whole / "config.json")
    assert encode(AutoTokenizer.from_pretrained(adapter)) == expected
    assert encode(AutoTokenizer.from_pretrained(whole)) == expected
    assert tokenizer_digest(load_tokenizer(whole)) == tokenizer_digest(load_tokenizer(folder))


def test_case_is_the_tokenizers_own(folder):
    cased_file(folder)
    tokenizer = load_tokenizer(folder)
    assert keeps_case(tokenizer)
    assert not uses_bert_class(folder)
    assert tokenizer.tokenize("Berlin berlin") == ["Berlin", "berlin"]


def test_what_transformers_5_writes_reads_as_what_4_calls_it(folder, tmp_path, recwarn):
    cased_file(folder, "TokenizersBackend", backend="tokenizers", extra_special_tokens=["<e1>"])
    four = tmp_path / "four"
    shutil.copytree(folder, four)
    cased_file(four, additional_special_tokens=["<e1>"])
    expected = encode(AutoTokenizer.from_pretrained(four))
    assert encode(load_tokenizer(folder)) == expected
    (tmp_path / "saved").mkdir()
    save_tokenizer(folder, tmp_path / "saved")
    assert encode(AutoTokenizer.from_pretrained(tmp_path / "saved")) == expected
    assert load_tokenizer(folder).tokenize("<e1>x") == ["<e1>", "x"]
    assert not [warning for warning in recwarn if warning.category is RequestWarning]


def test_cased_looking_vocabulary_that_is_lower_cased_is_told(folder, recwarn):
    vocabulary_alone(folder)
    with pytest.warns(RequestWarning, match=r"words with capitals \(Berlin\).*\"do_lower_case\": false"):
        load_tokenizer(folder)
    recwarn.clear()
    for settings in ({"do_lower_case": True}, {"do_lower_case": False}):
        write_json(folder, "tokenizer_config.json", settings)
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(word for word in WORDS if word[0] == "[" or word == word.lower()))
    load_tokenizer(folder)
    assert not [warning for warning in recwarn if warning.category is RequestWarning]


def test_transformers_warnings_are_shown_in_one_line(folder, monkeypatch):
    import transformers

    vocabulary_alone(folder)
    write_json(folder, "tokenizer_config.json", {"do_lower_case": True})
    told = transformers.PreTrainedTokenizerBase.__init__

    def tell(self, *args, **more):
        transformers.utils.logging.get_logger("transformers.tokenization_utils_base").warning("two\nlines of it")
        told(self, *args, **more)

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "__init__", tell)
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with pytest.warns(RequestWarning, match="two lines of it"):
            load_tokenizer(folder)
        assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.ERROR
    finally:
        transformers.utils.logging.set_verbosity(before)


def test_tokenizer_without_special_tokens_is_told_and_one_without_padding_pads(folder):
    from tfmt.data.examples import Examples
    from tfmt.data.tokens import tokenize

    made = word_pieces(None)
    made.post_processor = processors.TemplateProcessing("$A", "$A $B:1", [])
    made.save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.warns(RequestWarning, match="no special tokens"):
        tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id is None
    examples = Examples((["the film", "The"],), None)
    split = tokenize(examples, tokenizer, 8, tokenizer_digest(tokenizer))
    assert split.pad_id == 0
    assert split.ids.tolist() == [WORDS.index("the"), WORDS.index("film"), WORDS.index("The")]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}, "mecab"),
        ({"word_tokenizer_type": "sudachi"}, "word_tokenizer_type"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer is one in Python"),
        ({"tokenizer_class": "CanineTokenizer"}, "CanineTokenizer is one in Python"),
        ({"auto_map": {"AutoTokenizer": ["own.Slow", "own.Fast"]}}, "auto_map"),
        ({"auto_map": ["own.Slow", None]}, "auto_map"),
        ({"tokenizer_class": "NoSuchTokenizer"}, "NoSuchTokenizer"), ({"tokenizer_class": 3}, "tokenizer_class"),
        ([], "expected a JSON object"),
    ],
)  # fmt: skip
def test_refuses_what_it_cannot_do(folder, settings, words):
    vocabulary_alone(folder)
    (folder / "own.py").write_text("raise SystemExit('ran')\nclass Slow: pass\nclass Fast: pass\n")
    write_json(folder, "tokenizer_config.json", settings)
    for call in (load_tokenizer, describe_tokenizer, model_digest):
        with pytest.raises(RequestError, match=words) as error:
            call(folder)
        assert "\n" not in str(error.value)
        assert str(folder) in str(error.value)


def entries(*gone, before=()):
    def write(folder):
        lines = [*before, *(word for word in WORDS if word not in gone)]
        (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return write


def raw(content, name="vocab.txt"):
    return lambda folder: (folder / name).write_bytes(content)


def beside(name, content):
    def write(folder):
        vocabulary_alone(folder)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return write


def state(change):
    """A tokenizer.json of which a part is another."""

    def write(folder):
        cased_file(folder)
        stored = json.loads((folder / "tokenizer.json").read_text())
        change(stored)
        write_json(folder, "tokenizer.json", stored)

    return write


def unigram(unknown):
    return state(lambda stored: stored.update(
        model={"type": "Unigram", "unk_id": unknown, "vocab": [[word, -1.0] for word in WORDS]}))  # fmt: skip


WRONG = {
    "no vocabulary": lambda folder: None, "empty": raw(b""), "one blank line": raw(b"\n"),
    "nothing but NUL": raw(b"\0" * 99),
    "another file": raw(b"version https://git-lfs.github.com/spec/v1\nsize 231508\n"),
    "not UTF-8": raw(b"[UNK]\n\xe9\n"),
    "folder": lambda folder: (folder / "vocab.txt").mkdir(),
    "link to nowhere": lambda folder: (folder / "vocab.txt").symlink_to("/nowhere"),
    "no UNK": entries("[UNK]"), "no CLS": entries("[CLS]"), "no SEP": entries("[SEP]"), "no PAD": entries("[PAD]"),
    "no special token": entries(*WORDS[:5]), "CLS twice": entries(before=["[CLS]"]),
    "settings nested deeply": beside("tokenizer_config.json", b"[" * 100_000 + b"]" * 100_000),
    "length in words": beside("tokenizer_config.json", {"model_max_length": "long"}),
    "inputs as a number": beside("tokenizer_config.json", {"model_input_names": 5}),
    "broken names": beside("special_tokens_map.json", b"{"), "broken additions": beside("added_tokens.json", b"[1]"),
    "file of nothing": beside("tokenizer.json", b""),
    "file without a model": beside("tokenizer.json", {"version": "1.0"}),
    "file cut": beside("tokenizer.json", b'{"version": "1.0", "model": {"type": "WordPi'),
    "unknown words have no id": unigram(None),
    "unknown word is not in the model": state(lambda stored: stored["model"]["vocab"].pop("[UNK]")),
    "no entry": state(lambda stored: stored.update(
        added_tokens=[], post_processor=None, model={"type": "BPE", "vocab": {}, "merges": []})),
    "id beyond the rows": state(lambda stored: stored["model"]["vocab"].update(the=300)),
    "template beyond the rows": state(
        lambda stored: stored["post_processor"]["special_tokens"]["[CLS]"].update(ids=[99_999])),
    "template without its tokens": state(lambda stored: stored["post_processor"].update(special_tokens={})),
}  # fmt: skip


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_a_wrong_tokenizer_is_refused_before_a_run_has_a_folder(folder, toy_glue, tmp_path, capsys, damage):
    from tfmt.train import main

    damage(folder)
    flags = {"model": folder, "task": "mrpc", "mode": "frozen", "data_dir": toy_glue, "output_dir": tmp_path / "runs",
             "epochs": 1, "max_length": 32}  # fmt: skip
    assert main([f"--{name}={value}" for name, value in flags.items()]) == 2
    assert not (tmp_path / "runs").exists()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"tfmt-train: {folder}")


def test_special_tokens_that_only_other_files_name_are_taken(folder):
    entries("[PAD]", "[CLS]")(folder)
    write_json(folder, "added_tokens.json", {"[PAD]": len(WORDS) - 2, "[CLS]": len(WORDS) - 1})
    assert describe_tokenizer(folder).words == len(WORDS)


def test_words_that_a_vocabulary_repeats_are_told(folder):
    entries(before=["film"])(folder)
    with pytest.warns(RequestWarning) as told:
        tokenizer = load_tokenizer(folder)
    assert any("1 entry more than once ('film')" in str(warning.message) for warning in told)
    assert tokenizer.convert_tokens_to_ids("film") == 1 + WORDS.index("film")


def test_japanese_words_in_the_models_config_are_refused_too(folder):
    vocabulary_alone(folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder, "config.json", config | {"tokenizer_class": "BertJapaneseTokenizer"})
    with pytest.raises(RequestError, match="BertJapaneseTokenizer"):
        load_tokenizer(folder)


def test_rows_and_types_that_a_tokenizer_needs(folder, make_toy_bert, tmp_path):
    cased_vocabulary(folder)
    facts = describe_tokenizer(folder)
    assert (facts.words, facts.pair_types) == (len(WORDS), 2)
    old_added_tokens(folder)
    assert describe_tokenizer(folder).words == len(WORDS) + 3
    small = make_toy_bert(tmp_path / "small", vocab_size=len(WORDS) + 2)
    old_added_tokens(small)
    for call in (load_tokenizer, describe_tokenizer):
        with pytest.raises(RequestError, match=f"37 entries .* {len(WORDS) + 2} rows"):
            call(small)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (folder / name).unlink()
    of_another_model(folder)
    assert describe_tokenizer(folder).pair_types == 1
    odd = word_pieces(None)
    odd.post_processor = processors.TemplateProcessing("$A [CLS]:2", "$A $B:1 [CLS]:2", [("[CLS]", 2)])
    odd.save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES})
    with pytest.raises(RequestError, match="token types"):
        load_tokenizer(folder)


def changed(name, **keys):
    def change(folder):
        path = folder / name
        write_json(folder, name, (json.loads(path.read_text()) if path.exists() else {}) | keys)

    return change


def reformatted(folder):
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(content.items())), indent=7))


def described(folder):
    (folder / "README.md").write_text("a model")
    write_json(folder, "trainer_state.json", {"epoch": 3})


def new_normalizer(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    write_json(folder, "tokenizer.json", state | {"normalizer": {"type": "NFC"}})


@pytest.mark.parametrize(
    ("change", "renames"),
    [
        (changed("added_tokens.json", USERs=len(WORDS)), True), (new_normalizer, True),
        (changed("special_tokens_map.json", additional_special_tokens=["<e1>"]), True),
        (changed("tokenizer_config.json", truncation_side="left"), True),
        (changed("tokenizer_config.json", split_special_tokens=True), True),
        (changed("tokenizer_config.json", pad_token="[UNK]"), True),
        (changed("tokenizer_config.json", comment="mine", model_max_length=77), False),
        (changed("config.json", _name_or_path="elsewhere", layer_norm_eps=1e-12, torch_dtype="float32"), False),
        (changed("config.json", layer_norm_eps=1e-6), True), (reformatted, False), (described, False),
    ],
)  # fmt: skip
def test_digest_of_a_model_follows_what_decides_its_tokens_and_nothing_else(folder, change, renames):
    cased_file(folder)
    before, facts = model_digest(folder), describe_tokenizer(folder)
    assert describe_tokenizer(folder) == facts
    change(folder)
    assert (model_digest(folder) != before) is renames


def test_facts_are_remembered_and_a_broken_memory_is_no_harm(folder, monkeypatch, tmp_path):
    from tfmt.bert import tokenizer as room

    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "cache"))
    cased_file(folder)
    facts = describe_tokenizer(folder)
    monkeypatch.setattr(room, "_load", lambda folder: pytest.fail("loaded again"))
    assert describe_tokenizer(folder) == facts
    monkeypatch.undo()
    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "cache"))
    for path in (tmp_path / "cache" / "tokenizers").iterdir():
        path.write_text("[1]")
    assert describe_tokenizer(folder) == facts
