"""What all exports ask of a model and its vocabulary."""

import keras

from keras_selfish.layers import CarriedState


def check_forward(model, vocabulary):
    """Raises `ValueError` unless a model that is no language model can be exported as a forward pass."""
    if vocabulary is not None:
        raise ValueError(
            "`vocabulary` goes with a language model, which has a method `stepwise()`. Received: "
            f"model={model!r}; leave `vocabulary` out"
        )
    if any(isinstance(layer, CarriedState) for layer in getattr(model, "layers", ())):
        raise ValueError(
            "`model` must not carry hidden state in its variables, which all users of a server would share. "
            f"Received: model={model.name!r}, which has a `CarriedState`; give it a method `stepwise()`"
        )


def checked_vocabulary(vocabulary, size):
    """The tokens of a vocabulary that fits a model."""
    tokens = getattr(vocabulary, "tokens", vocabulary)
    if tokens is None:
        raise ValueError(
            f"`vocabulary` must hold the model's {size} tokens, into which texts are cut. Received: None"
        )
    tokens = tuple(tokens)
    if len(tokens) != size:
        raise ValueError(
            f"`vocabulary` must hold a token for each of the model's {size} ids. "
            f"Received: {len(tokens)} tokens"
        )
    first = {}
    for index, token in enumerate(tokens):
        if not isinstance(token, str) or len(token.splitlines()) != 1:
            raise ValueError(
                f"`vocabulary` must hold strings of one line each. Received: {token!r} as token {index}"
            )
        if first.setdefault(token, index) != index:
            raise ValueError(
                f"`vocabulary` must hold distinct tokens. Received: {token!r} as tokens "
                f"{first[token]} and {index}"
            )
    return tokens


def output_names(plain):
    """A name for each output tensor of a model, in Keras's order: its key in a dict, or that of its layer."""
    if isinstance(plain, keras.Sequential):
        return [plain.layers[-1].name]
    if isinstance(plain.output, dict) and len(plain.output) == len(plain.outputs):
        return [str(name) for name in sorted(plain.output)]
    names = plain.output_names
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
