"""The table of weights against the papers' counts and against the built models."""

import tensorflow as tf
import transformers

from tfmt.bert.configs import PAPER_SHAPES, BertShape
from tfmt.bert.models import build_bert, weights_of
from tfmt.bert.vocabulary import SUBLAYERS, list_weights, variable_path

TOY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def count(weights, *sublayers):
    return sum(weight.size for weight in weights if not sublayers or weight.sublayer in sublayers)


def test_counts_of_the_papers():
    base = list_weights(PAPER_SHAPES["bert-base-uncased"], "sentence", 2)
    assert count(base) - count(base, "classifier") == 109_482_240
    assert count(base, "attention") == 28_348_416
    assert count(base, "feedforward") == 56_669_184
    assert count(base, "attention_layernorm") == count(base, "feedforward_layernorm") == 18_432
    assert len(base) == 201
    large = list_weights(PAPER_SHAPES["bert-large-cased"], "sentence", 2)
    assert count(large) == 333_581_314  # P2, with the classifier
    tokens = list_weights(PAPER_SHAPES["bert-base-cased"], "tokens", 9)
    assert count(tokens) - count(tokens, "classifier") == 107_719_680


def built_in_graph(config, kind):
    """The names and shapes of a model's variables, without their memory."""
    with tf.Graph().as_default():
        model = kind(config, name="any")
        model.build_in_name_scope()
        return {variable_path(variable): tuple(variable.shape) for variable in model.weights}


def test_table_is_a_partition_of_the_built_models():
    sizes = {"bert-base-uncased": (768, 12, 12, 3072, 30522), "bert-large-cased": (1024, 24, 16, 4096, 28996)}
    for name, (hidden, blocks, heads, intermediate, vocabulary) in sizes.items():
        config = transformers.BertConfig(hidden_size=hidden, num_hidden_layers=blocks, num_attention_heads=heads,
                                         intermediate_size=intermediate, vocab_size=vocabulary)  # fmt: skip
        built = built_in_graph(config, transformers.TFBertForSequenceClassification)
        table = list_weights(PAPER_SHAPES[name], "sentence", 2)
        assert {weight.path: weight.shape for weight in table} == built
        assert {weight.sublayer for weight in table} == set(SUBLAYERS)


def test_token_head_has_no_pooler():
    config = transformers.BertConfig(**TOY, num_labels=5)
    built = built_in_graph(config, transformers.TFBertForTokenClassification)
    table = list_weights(BertShape(16, 3, 2, 24, 50, 512, 2), "tokens", 5)
    assert {weight.path: weight.shape for weight in table} == built


def test_second_model_in_the_process_has_the_same_paths():
    config = transformers.BertConfig(**TOY)
    first, second = build_bert(config), build_bert(config, name="another")
    assert list(first.all_weights) == list(second.all_weights) == [weight.path for weight in weights_of(first)]


def test_paths_are_matched_whole():
    class Named:
        def __init__(self, name):
            self.name = name

    assert variable_path(Named("m/classifier/kernel:0")) == "classifier/kernel"
    assert variable_path(Named("m/bert/pooler/dense/bias/replica_1:0")) == "bert/pooler/dense/bias"
    assert variable_path(Named("dense/kernel:0")) == "dense/kernel"
    assert variable_path(Named("m/x/output/dense/kernel:0")) == "m/x/output/dense/kernel"


def test_torch_names_are_those_of_transformers():
    table = list_weights(BertShape(16, 1, 2, 24, 50, 512, 2), "sentence", 2)
    names = {weight.path: weight.torch_name for weight in table}
    block = "bert.encoder.layer.0"
    assert (
        names["bert/encoder/layer_._0/attention/output/LayerNorm/gamma"] == f"{block}.attention.output.LayerNorm.weight"
    )
    assert names["bert/encoder/layer_._0/output/dense/kernel"] == f"{block}.output.dense.weight"
    assert names["bert/embeddings/word_embeddings/weight"] == "bert.embeddings.word_embeddings.weight"
    assert len(set(names.values())) == len(names)
