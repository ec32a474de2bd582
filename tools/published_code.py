"""Trains three models and the published code's side by side, from the same weights: how far do they part?

`python -m tools.published_code CLONE`: the folder is a clone of github.com/Shiweiliuiiiiiii/Selfish-RNN,
whose modules are imported from there; it needs PyTorch (the extra `bench`). A stacked LSTM, a recurrent
highway network and an ON-LSTM, small and dense, set to the published way, take 24 steps of SGD with clipping
and decay on random tokens, states carried, without dropout. Printed are, over all weights, the largest
difference at the end and the largest change in training. The exit status is 1 if a difference is over a
millionth.
"""

import argparse
import dataclasses
import importlib
import pathlib
import sys

import numpy as np
import torch

VOCABULARY, COLUMNS, STEPS, PASSES = 50, 4, 7, 3
DECAY, CLIP = 1e-3, 0.25
AR, TAR = 2.0, 1.0
# Learning rate, and the arguments of our model.
MODELS = {
    "lstm": (5.0, {"units": 12, "layers": 2}),
    "rhn": (
        3.0,
        {
            "cell": "rhn",
            "cell_options": {"depth": 3, "coupled": True, "transform_bias": None},
            "units": 12,
            "layers": 1,
            "tied": True,
        },
    ),
    "on_lstm": (
        3.0,
        {
            "cell": "on_lstm",
            "cell_options": {"chunk_size": 4},
            "units": [12, 8],
            "embedding_units": 8,
            "tied": True,
            "kernel_limit": "inputs",
            "ar": AR,
            "tar": TAR,
            "ar_before_dropout": True,
        },
    ),
}


def main():
    """Compares all three and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("clone", type=pathlib.Path, help="folder that holds models.py and ONLSTM/")
    clone = parser.parse_args().clone
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, COLUMNS * (8 * STEPS + 1))
    worst = 0.0
    for name, (rate, arguments) in MODELS.items():
        before, after = train_ours(tokens, rate, arguments)
        published = train_published(clone, name, tokens, rate, before)
        difference = max(np.abs(published[key] - value).max() for key, value in after.items())
        changed = max(np.abs(before[key] - value).max() for key, value in after.items())
        print(f"{name:8} largest difference {difference:.1e}, largest change {changed:.2f}")
        worst = max(worst, difference)
    sys.exit(int(worst > 1e-6))


def train_ours(tokens, rate, arguments):
    """Our weights before and after the training, dicts of arrays by the ends of their paths."""
    from keras import ops

    from keras_selfish import SNTASGD, LanguageModel, TokenCrossEntropy
    from keras_selfish.data import Windows

    model = LanguageModel(
        VOCABULARY, dropout=0.0, batch_size=COLUMNS, seed=1, sparsity=0.0, bias_vectors=2, **arguments
    )
    model.compile(
        SNTASGD(rate, global_clipnorm=CLIP, weight_decay=DECAY), loss=TokenCrossEntropy(), run_eagerly=True
    )

    def weights():
        return {
            "/".join(variable.path.split("/")[-3:]).replace("_carried", ""): ops.convert_to_numpy(variable)
            for variable in model.trainable_variables
        }

    before = weights()
    for _ in range(PASSES):
        for inputs, targets in Windows(tokens, COLUMNS, STEPS):
            model.train_on_batch(inputs, targets)
    return before, weights()


def train_published(clone, name, tokens, rate, weights):
    """The published model's weights after the same training, under our names, second bias vectors added."""
    model, parts, loss_of = PUBLISHED[name](clone)
    for part in parts:
        part.write(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=DECAY)
    model.train()
    columns = torch.tensor(tokens).view(COLUMNS, -1).t()
    for _ in range(PASSES):
        states = model.init_hidden(COLUMNS)
        for start in range(0, len(columns) - 1, STEPS):
            stop = min(start + STEPS, len(columns) - 1)
            optimizer.zero_grad()
            targets = columns[start + 1 : stop + 1].reshape(-1)
            loss, states = loss_of(columns[start:stop], targets, detached(states))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
    after = {key: np.array(value) for key, value in weights.items()}
    for part in parts:
        part.read(after)
    return after


def detached(states):
    """States without what they were computed from."""
    return states.detach() if torch.is_tensor(states) else type(states)(map(detached, states))


@dataclasses.dataclass
class Part:
    """Parameters of the published code, and of which weight of ours they are a part.

    Args:
        key: Name of our weight.
        parameters: The parameters whose sum it is.
        row: Of a matrix of biases, which row; None for all of the weight.
        transposed: Whether the parameter is the transposed weight.
    """

    key: str
    parameters: list
    row: int = None
    transposed: bool = False

    def write(self, weights):
        value = weights[self.key] if self.row is None else weights[self.key][self.row]
        value = torch.tensor(np.ascontiguousarray(value.T if self.transposed else value))
        # Two summands are unequal, for it is their sum alone that counts.
        shares = (0.3, 0.7) if len(self.parameters) == 2 else (1.0,)
        for parameter, share in zip(self.parameters, shares, strict=True):
            parameter.data.copy_(share * value)

    def read(self, weights):
        value = sum(parameter.detach() for parameter in self.parameters).numpy()
        weights[self.key][... if self.row is None else self.row] = value.T if self.transposed else value


def published_module(folder, name):
    """A module of the clone."""
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
    if hasattr(module, "embedded_dropout"):
        # Theirs, without dropout, leaves out the last word's gradient (docs/design.md).
        module.embedded_dropout = lambda layer, words, dropout=0: torch.nn.functional.embedding(
            words, layer.weight
        )
    return module


def published_lstm(clone):
    """The stacked LSTM, its parts, and a function to its loss and states."""
    model = published_module(clone, "models").Stacked_LSTM("LSTM", VOCABULARY, 12, 12, 2, 0.0, False)
    parts = [
        Part("embedding/embeddings", [model.encoder.weight]),
        Part("decoder/kernel", [model.decoder.weight], transposed=True),
        Part("decoder/bias", [model.decoder.bias]),
    ]
    for index in range(2):
        cell = f"lstm_{index}/lstm_cell"
        weights = {name: getattr(model.rnn, f"{name}_l{index}") for name in NAMES}
        parts += [
            Part(f"{cell}/kernel", [weights["weight_ih"]], transposed=True),
            Part(f"{cell}/recurrent_kernel", [weights["weight_hh"]], transposed=True),
            Part(f"{cell}/bias", [weights["bias_ih"], weights["bias_hh"]]),
        ]

    def loss_of(words, targets, states):
        logits, states = model(words, states)
        return cross_entropy(logits.reshape(-1, VOCABULARY), targets), states

    return model, parts, loss_of


def published_rhn(clone):
    """The recurrent highway network; see `published_lstm`."""
    model = published_module(clone, "models").RHN(
        VOCABULARY, 12, 12, recurrence_depth=3, num_layers=1, tie_weights=True, couple=True
    )
    blocks, cell = model.rnns[0].highways, "rhn_0/rhn_cell"
    parts = [
        Part("embedding/embeddings", [model.embedding.weight]),
        Part("decoder_bias/bias", [model.fc1.bias]),
        Part(f"{cell}/kernel", [blocks[0].W.weight], transposed=True),
        Part(f"{cell}/bias", [blocks[0].W.bias, blocks[0].R.bias], row=0),
    ]
    for index, block in enumerate(blocks):
        parts.append(Part(f"{cell}/recurrent_kernel_{index}", [block.R.weight], transposed=True))
        if index:
            parts.append(Part(f"{cell}/bias", [block.R.bias], row=index))

    def loss_of(words, targets, states):
        logits, states = model(words, states)
        return cross_entropy(logits.reshape(-1, VOCABULARY), targets), states

    return model, parts, loss_of


def published_on_lstm(clone):
    """The ON-LSTM with its penalties; see `published_lstm`."""
    published_module(clone / "ONLSTM", "ON_LSTM")
    model = published_module(clone / "ONLSTM", "model").RNNModel(
        "LSTM", VOCABULARY, 8, 12, 4, 2, 0.0, 0.0, 0.0, 0.0, 0.0, True
    )
    parts = [
        Part("embedding/embeddings", [model.encoder.weight]),
        Part("decoder_bias/bias", [model.decoder.bias]),
    ]
    for index, theirs in enumerate(model.rnn.cells):
        cell, inputs = f"on_lstm_{index}/on_lstm_cell", theirs.ih[0]
        parts += [
            Part(f"{cell}/kernel", [inputs.weight], transposed=True),
            Part(f"{cell}/recurrent_kernel", [theirs.hh.weight], transposed=True),
            Part(f"{cell}/bias", [inputs.bias, theirs.hh.bias]),
        ]

    def loss_of(words, targets, states):
        features, states, raw, dropped = model(words, states, return_h=True)
        loss = cross_entropy(features @ model.decoder.weight.t() + model.decoder.bias, targets)
        loss = loss + AR * dropped[-1].pow(2).mean() + TAR * (raw[-1][1:] - raw[-1][:-1]).pow(2).mean()
        return loss, states

    return model, parts, loss_of


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
PUBLISHED = {"lstm": published_lstm, "rhn": published_rhn, "on_lstm": published_on_lstm}
cross_entropy = torch.nn.functional.cross_entropy


if __name__ == "__main__":
    main()
