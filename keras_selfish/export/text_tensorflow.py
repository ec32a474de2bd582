"""What a SavedModel of ours computes with strings. Imported only where Keras runs on TensorFlow."""

import itertools

import tensorflow as tf

from keras_selfish.export.generation_tensorflow import OPTIONS, continuation, for_each
from keras_selfish.export.reading_tensorflow import Reader, negative_sum, traced
from keras_selfish.export.serving_tensorflow import INTEGERS, save

STRINGS = tf.TensorSpec((None,), tf.string)


def write_text_model(stepwise, path, assets, words, generate_unknown):
    """Writes a SavedModel with the signatures `score_text`, `next_words` and `generate`.

    Args:
        stepwise: A Functional model from `[tokens, state, ...]` to `[logits, state, ...]`, without masks.
        path: A folder that does not exist yet.
        assets: Dict from attributes of the loaded object to the files that are carried along.
        words: The `Words` that the model knows.
        generate_unknown: Whether `generate` may say the token that stands for unknown ones.
    """
    module = tf.Module()
    module.tables = words.tables
    reader = Reader(stepwise)
    module.score_text = module.serve = _score_text(reader, words)
    module.next_words, next_words = _next_words(reader, words)
    never = None if generate_unknown else words.unknown_id
    module.generate, generate = _generate(reader, words, never)
    texts, prompts = tf.TensorSpec((None,), tf.string, "texts"), tf.TensorSpec((None,), tf.string, "prompts")
    options = {name: tf.TensorSpec((None,), dtype, name) for name, (dtype, *_) in OPTIONS.items()}
    signatures = {
        "score_text": module.score_text.get_concrete_function(),
        "next_words": next_words.get_concrete_function(texts=texts, k=tf.TensorSpec((None,), tf.int32, "k")),
        "generate": generate.get_concrete_function(prompts=prompts, **options),
    }
    signatures["serving_default"] = signatures["score_text"]
    save(module, path, signatures, assets)


class Words:
    """How strings become ids of a vocabulary, and ids strings.

    Args:
        vocabulary: Tuple of tokens.
        file: File with these tokens, one a line.
        tokenize: Function from strings (batch,) to a `tf.RaggedTensor` of tokens (batch, tokens).
        start_token: The token that a text follows, and that ends a line.
        unknown_token: The token that stands for all others.

    Attributes:
        tables: The tables that hold the vocabulary, to be kept with functions that use them.
        unknown_id: Id of the unknown token.
    """

    def __init__(self, vocabulary, file, tokenize, start_token, unknown_token):
        self._tokenize = tokenize
        self._start_token, self._start_id = start_token, vocabulary.index(start_token)
        self.unknown_id = vocabulary.index(unknown_token)
        token = tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
        number = tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        self._ids = _table(file, token, number, self.unknown_id)
        self._tokens = _table(file, number, token, "")
        self.tables = [self._ids, self._tokens]

    def encode(self, texts, as_prompts=False):
        """Cuts texts into tokens.

        Args:
            texts: Strings (batch,).
            as_prompts: Whether the texts are to be continued: then the end of a line that the tokenizer adds
                is left out.

        Returns:
            Strings (batch, tokens), padded with `""`; int32 (batch, 1 + tokens), the id of the start token
            and those of the tokens; int32 (batch,), the number of tokens.
        """
        ragged = self._tokenize(texts)
        tokens, lengths = ragged.to_tensor(""), tf.cast(ragged.row_lengths(), tf.int32)
        if as_prompts:
            last = ragged[:, -1:].to_tensor("", shape=(None, 1))[:, 0]
            ends_its_line = tf.strings.regex_full_match(texts, r"(?s).*[\r\n]")
            lengths -= tf.cast((last == self._start_token) & ~ends_its_line, tf.int32)
        ids = tf.cast(self._ids.lookup(tokens), tf.int32)
        return tokens, tf.pad(ids, [[0, 0], [1, 0]], constant_values=self._start_id), lengths

    def decode(self, ids, lengths):
        """The tokens (batch, time) of ids, `""` after a row's length."""
        tokens = self._tokens.lookup(tf.cast(ids, tf.int64))
        return tf.where(tf.sequence_mask(lengths, tf.shape(ids)[1]), tokens, "")

    def join(self, tokens, lengths):
        """Texts (batch,) of tokens (batch, time), with spaces between them and line ends as such."""
        tokens = tf.where(tokens == self._start_token, "\n", tokens)
        texts = tf.strings.reduce_join(tf.RaggedTensor.from_tensor(tokens, lengths), axis=1, separator=" ")
        return tf.strings.regex_replace(texts, " ?\n ?", "\n")


def _table(file, key, value, default):
    initializer = tf.lookup.TextFileInitializer(str(file), *key, *value)
    return tf.lookup.StaticHashTable(initializer, default)


def _score_text(reader, words):
    def of_texts(texts):
        tokens, ids, lengths = words.encode(texts)
        log_probabilities = reader.log_probabilities(ids, lengths + 1)
        loss = negative_sum(log_probabilities)
        return {
            "tokens": tokens,
            "log_probabilities": log_probabilities,
            "loss": loss,
            "perplexity": tf.exp(tf.math.divide_no_nan(loss, tf.cast(lengths, tf.float32))),
        }

    once = traced(of_texts, STRINGS)
    texts = tf.TensorSpec((None,), tf.string, "texts")
    return tf.function(lambda texts: once(texts), autograph=False, input_signature=[texts])


def _next_words(reader, words):
    """The function `next_words` with a default, and the one of the signature."""

    def words_after(texts, k):
        size = reader.vocabulary_size
        k = for_each(
            texts, "k", k, lambda k: (k > 0) & (k <= size), f"from 1 to {size}, the size of the vocabulary"
        )
        _, ids, lengths = words.encode(texts, as_prompts=True)
        probabilities = tf.nn.softmax(reader.last_logits(ids, lengths + 1))
        most = tf.reduce_max(tf.concat([[1], k], 0))
        probabilities, ids = tf.math.top_k(probabilities, most)
        probabilities = tf.where(tf.sequence_mask(k, most), probabilities, 0.0)
        return {"words": words.decode(ids, k), "probabilities": probabilities}

    once = traced(words_after, STRINGS, tf.TensorSpec(None, tf.int32))

    @tf.function(autograph=False)
    def next_words(texts, k=10):
        return once(texts, tf.cast(k, tf.int32))

    for dtype in INTEGERS:
        next_words.get_concrete_function(STRINGS, tf.TensorSpec(None, dtype))
    return next_words, tf.function(lambda texts, k: once(texts, k), autograph=False)


def _generate(reader, words, never):
    """The function `generate` with defaults, and the one of the signature."""
    specs = [tf.TensorSpec(None, option.dtype) for option in OPTIONS.values()]

    def continued(prompts, *values):
        options = {
            name: for_each(prompts, name, value, option.holds, option.rule)
            for value, (name, option) in zip(values, OPTIONS.items(), strict=True)
        }
        _, ids, lengths = words.encode(prompts, as_prompts=True)
        ids = continuation(reader, ids, lengths + 1, never, **options)
        tokens = words.decode(ids, options["length"])
        return {"texts": words.join(tokens, options["length"]), "tokens": tokens}

    once = traced(continued, STRINGS, *specs)

    @tf.function(autograph=False)
    def generate(prompts, length=20, temperature=1.0, top_k=0, top_p=1.0, seed=0):
        values = (length, temperature, top_k, top_p, seed)
        return once(prompts, *(tf.cast(v, spec.dtype) for v, spec in zip(values, specs, strict=True)))

    for integer, real in itertools.product(INTEGERS, (tf.float64, tf.float32)):
        given = [tf.TensorSpec(None, integer if spec.dtype.is_integer else real) for spec in specs]
        generate.get_concrete_function(STRINGS, *given)

    def of_signature(prompts, **options):
        return once(prompts, *(options[name] for name in OPTIONS))

    return generate, tf.function(of_signature, autograph=False)
