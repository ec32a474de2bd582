"""Gradients of a model's loss on PyTorch."""

import torch
from keras import ops


def make_gradients(model, training):
    """A function from a batch and a list of variables to the gradients of the loss, NumPy arrays."""

    def compute(batch, variables):
        x, y, sample_weight = batch
        model.zero_grad()
        predictions = model(x, training=training)
        loss = model.compute_loss(
            x=x, y=y, y_pred=predictions, sample_weight=sample_weight, training=training
        )
        loss.backward()
        found = [variable.value.grad for variable in variables]
        found = [
            torch.zeros_like(variable.value) if gradient is None else gradient
            for gradient, variable in zip(found, variables, strict=True)
        ]
        arrays = [ops.convert_to_numpy(gradient.float()) for gradient in found]
        model.zero_grad()
        return arrays

    return compute
