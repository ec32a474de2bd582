import keras
import numpy as np
import pytest

from keras_selfish import LanguageModel
from keras_selfish.data import Vocabulary
from keras_selfish.data.tokenization import TOKENIZATIONS
from keras_selfish.export import saved_model, text_model

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    from keras_selfish.data.tokenization_tensorflow import tokenizer

WORDS = ("<eos>", "<unk>", "the", "cat", "sat", ".", "...", "don't", "it's", "a")
# Of many lengths, empty, ending a line, of several lines, unknown.
PROMPTS = ["", "the cat", "a cat sat . it's\n", "the", "the cat\nsat", "dog", "the cat " * 40]


@pytest.fixture(scope="module")
def model():
    """A language model that prefers some words to others."""
    model = LanguageModel(len(WORDS), units=8, layers=2, dropout=0.0, seed=1)
    for weight in model.trainable_variables:
        weight.assign(8.0 * weight)
    return model


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return tf.saved_model.load(text_model(model, folder / "text", WORDS, tokenizer("words_and_marks")))


@pytest.fixture(scope="module")
def of_ids(model, tmp_path_factory):
    return tf.saved_model.load(saved_model(model, tmp_path_factory.mktemp("ids") / "served"))


def strings(tensor):
    return [[token.decode() for token in row] for row in tensor.numpy()]


def probabilities_after(of_ids, words):
    """The model's distribution after the start token and words, by `step`."""
    ids = Vocabulary(WORDS).encode(["<eos>", *words])
    logits = of_ids.step([ids], **of_ids.initial_state(1))["logits"]
    return tf.nn.softmax(logits)[0].numpy()


def test_strings_are_scored_as_their_ids(served, of_ids):
    result = served.score_text(["The cat sat ....", "It's a dog"])
    tokens = [["the", "cat", "sat", "...", "<eos>"], ["it's", "a", "dog", "<eos>", ""]]
    assert strings(result["tokens"]) == tokens
    for row, words in enumerate(tokens):
        words = [word for word in words if word]
        ids = Vocabulary(WORDS).encode(["<eos>", *words])
        expected = of_ids.score([ids])["log_probabilities"][0]
        actual = result["log_probabilities"][row]
        np.testing.assert_allclose(actual[: len(words)], expected, rtol=1e-5)
        assert not np.any(actual[len(words) :])
        assert float(result["loss"][row]) == pytest.approx(-np.sum(expected), rel=1e-5)
        assert float(result["perplexity"][row]) == pytest.approx(np.exp(-np.mean(expected)), rel=1e-5)


def test_a_text_is_scored_the_same_alone_and_among_others(served):
    together = served.score_text(PROMPTS)
    for row, text in enumerate(PROMPTS):
        alone = served.score_text(tf.constant([text]))
        np.testing.assert_allclose(together["loss"][row], alone["loss"][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("", []),
        ("The cat", ["the", "cat"]),
        ("the cat\n", ["the", "cat", "<eos>"]),
        ("the cat\r\n", ["the", "cat", "<eos>"]),
        ("the\ncat", ["the", "<eos>", "cat"]),
        ("dog", ["<unk>"]),
    ],
)
def test_a_prompt_is_continued_after_its_last_word(prompt, read, served, of_ids):
    expected = probabilities_after(of_ids, read)
    result = served.next_words([prompt], k=len(WORDS))
    found = dict(zip(strings(result["words"])[0], result["probabilities"].numpy()[0], strict=True))
    assert found == pytest.approx(dict(zip(WORDS, expected, strict=True)), rel=1e-4)
    assert np.all(np.diff(result["probabilities"]) <= 0)
    greedy = served.generate([prompt], length=1, temperature=0.0)
    likeliest = max((word for word in WORDS if word != "<unk>"), key=lambda word: expected[WORDS.index(word)])
    assert strings(greedy["tokens"]) == [[likeliest]]


def test_each_text_gets_as_many_words_as_it_asks_for(served):
    result = served.next_words(PROMPTS, k=[1, 2, 3, 4, 5, 6, 10])
    asked = np.arange(10) < np.array([[1], [2], [3], [4], [5], [6], [10]])
    np.testing.assert_array_equal(result["probabilities"].numpy() > 0, asked)
    np.testing.assert_array_equal(result["words"].numpy() != b"", asked)
    for row, text in enumerate(PROMPTS):
        alone = served.next_words(tf.constant([text]))
        number = asked[row].sum()
        assert strings(result["words"])[row][:number] == strings(alone["words"])[0][:number]
        np.testing.assert_allclose(
            result["probabilities"][row, :number], alone["probabilities"][0, :number], rtol=1e-5
        )


def test_greedy_words_are_the_likeliest_one_after_another(served, of_ids):
    words = ["the", "cat"]
    for _ in range(6):
        probabilities = probabilities_after(of_ids, words)
        probabilities[WORDS.index("<unk>")] = 0
        words.append(WORDS[np.argmax(probabilities)])
    result = served.generate(["the cat"], length=6, temperature=0)
    assert strings(result["tokens"]) == [words[2:]]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.8}])
def test_a_prompt_is_continued_the_same_alone_and_among_others(options, served):
    length, seed = np.array([1, 7, 3, 12, 5, 9, 4]), np.arange(7)
    together = served.generate(PROMPTS, length, seed=seed, **options)
    assert together["tokens"].shape == (7, 12)
    for row, prompt in enumerate(PROMPTS):
        one = slice(row, row + 1)
        alone = served.generate(tf.constant([prompt]), length[one], seed=seed[one], **options)
        assert together["texts"][row] == alone["texts"][0]
        assert strings(together["tokens"])[row] == strings(alone["tokens"])[0] + [""] * (12 - length[row])


def test_one_option_may_differ_among_prompts(served):
    """A row without limits draws the same beside one with limits, for which all are sorted."""
    prompts, seeds = ["the cat"] * 30, range(30)
    mixed = served.generate(prompts, 8, top_k=[0, 1] * 15, top_p=[1.0, 0.5] * 15, seed=seeds)
    free = served.generate(prompts, 8, seed=seeds)
    greedy = served.generate(["the cat"], 8, temperature=0.0)["texts"][0]
    assert np.all(mixed["texts"][::2] == free["texts"][::2])
    assert np.all(mixed["texts"][1::2] == greedy)
    assert len(set(free["texts"].numpy())) > 20


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 4}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.7}],
    ids=str,
)
def test_words_are_drawn_with_their_probabilities(options, served, of_ids):
    """10,000 draws against a distribution worked out in NumPy, by a chi-squared statistic."""
    weights = probabilities_after(of_ids, ["the", "cat"]).astype("float64") ** (
        1 / options.get("temperature", 1.0)
    )
    weights[WORDS.index("<unk>")] = 0
    order = np.argsort(-weights)
    weights[order[options.get("top_k") or len(WORDS) :]] = 0
    before = np.cumsum(weights[order] / weights.sum()) - weights[order] / weights.sum()
    weights[order[before >= options.get("top_p", 1.0)]] = 0
    expected = 10_000 * weights / weights.sum()
    drawn = served.generate(["the cat"] * 10_000, 1, seed=range(10_000), **options)["tokens"].numpy()[:, 0]
    counts = np.array([np.sum(drawn == word.encode()) for word in WORDS])
    possible = expected > 0
    assert not np.any(counts[~possible])
    assert 1 < possible.sum() < len(WORDS)
    assert np.sum((counts - expected)[possible] ** 2 / expected[possible]) < 30  # 9 degrees: 1 in 2,300


@pytest.mark.parametrize("tokenization", ["whitespace", "words_and_marks"])
def test_what_is_generated_is_cut_into_the_same_tokens(tokenization, model, tmp_path):
    path = text_model(model, tmp_path / "text", Vocabulary(WORDS), tokenizer(tokenization))
    served = tf.saved_model.load(path)
    result = served.generate(["the cat"] * 20, 30, seed=range(20))
    for text, tokens in zip(result["texts"].numpy(), strings(result["tokens"]), strict=True):
        assert TOKENIZATIONS[tokenization](text.decode()) == tokens
        assert "<unk>" not in tokens
    needs_text = b"RegexSplit" in (path / "saved_model.pb").read_bytes()  # an operation of TensorFlow Text
    assert needs_text == (tokenization == "words_and_marks")


def test_the_unknown_token_is_generated_where_it_may(model, tmp_path):
    path = text_model(model, tmp_path / "text", WORDS, tokenizer("whitespace"), generate_unknown=True)
    served = tf.saved_model.load(path)
    drawn = served.generate(["the"] * 200, 3, temperature=3.0, seed=range(200))["tokens"]
    assert np.any(drawn == b"<unk>")


def test_other_marks_of_line_ends_and_unknown_words(model, tmp_path):
    """And a tokenizer that adds nothing to a text."""
    words = ["</s>", "UNK", *WORDS[2:]]
    path = text_model(model, tmp_path / "text", words, tf.strings.split, "</s>", "UNK")
    served = tf.saved_model.load(path)
    assert strings(served.score_text(["the dog", ""])["tokens"]) == [["the", "dog"], ["", ""]]
    assert served.score_text([""])["perplexity"].numpy() == [1.0]
    assert served.generate(["the cat", ""], 4, seed=3)["tokens"].shape == (2, 4)


def test_no_texts_at_all(served):
    none = tf.constant([], tf.string)
    assert served.score_text(none)["perplexity"].shape == (0,)
    assert served.next_words(none)["words"].shape[0] == 0
    assert served.generate(none)["texts"].shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "`length` must be at least 1. Received: from 0 to 0"),
        ({"length": [3, -1]}, "`length` must be at least 1. Received: from -1 to 3"),
        ({"temperature": -0.5}, "`temperature` must be finite and at least 0. Received: from -0.5"),
        ({"temperature": float("inf")}, "`temperature` must be finite"),
        ({"top_k": -1}, "`top_k` must be at least 0"),
        ({"top_p": 0.0}, "`top_p` must be over 0 and at most 1"),
        ({"top_p": [0.5, 1.5]}, "`top_p` must be over 0 and at most 1"),
        ({"seed": [1, 2, 3]}, r"`seed` must be a number, or one for each text.* 2. Received: shape \[3\]"),
        ({"length": [[1, 2]]}, r"`length` must be a number, or one for each text.* Received: shape \[1 2\]"),
    ],
    ids=str,
)
def test_options_out_of_range_are_one_sentence(options, message, served):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served.generate(["the", "cat"], **options)


@pytest.mark.parametrize("k", [0, 11])
def test_more_words_than_there_are_are_refused(k, served):
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=f"`k` must be from 1 to 10.* Received: from {k}"
    ):
        served.next_words(["the"], k)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary": WORDS[:-1]}, "each of the model's 10 ids. Received: 9 tokens"),
        ({"vocabulary": None}, "`vocabulary` must hold the model's 10 tokens.* Received: None"),
        ({"vocabulary": [*WORDS[1:], "dog"]}, "`vocabulary` must hold <eos> and <unk>.*without <eos>"),
        ({"vocabulary": [*WORDS[:-1], "the"]}, "distinct tokens. Received: 'the' as tokens 2 and 9"),
        ({"unknown_token": "UNK"}, "`vocabulary` must hold <eos> and UNK.*without UNK"),
        ({"tokenize": "whitespace"}, "`tokenize` must be a function.* Received: 'whitespace'"),
        ({"tokenize": tf.strings.length}, "`tokenize` must be a function.* Received: <tf.Tensor"),
    ]
    if keras.backend.backend() == "tensorflow"
    else [],
)
def test_bad_arguments_are_refused_before_anything_is_written(arguments, message, model, tmp_path):
    arguments = {"vocabulary": WORDS, "tokenize": tokenizer("whitespace"), **arguments}
    with pytest.raises(ValueError, match=message):
        text_model(model, tmp_path / "text", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_only_a_language_model_takes_text(tmp_path):
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must be a language model"):
        text_model(plain, tmp_path / "text", WORDS, tokenizer("whitespace"))
    assert list(tmp_path.iterdir()) == []
