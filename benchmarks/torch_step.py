"""Training steps of what a PyTorch user would run: dense kernels, masks multiplied in after each update."""

import contextlib
import time

import torch

from benchmarks.task import DROPOUT, SETTINGS, SPARSITY, result_of, windows


class LanguageModel(torch.nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.embedding = torch.nn.Embedding(sizes.vocabulary, sizes.units)
        between = DROPOUT if sizes.layers > 1 else 0.0  # PyTorch warns of dropout between a single layer
        self.recurrent = torch.nn.LSTM(sizes.units, sizes.units, sizes.layers, dropout=between)
        self.decoder = torch.nn.Linear(sizes.units, sizes.vocabulary)
        self.dropout = torch.nn.Dropout(DROPOUT)

    def forward(self, tokens, state):
        features, state = self.recurrent(self.dropout(self.embedding(tokens)), state)
        return self.decoder(self.dropout(features)), state


def measure(variant, sizes, steps):
    """Measures `"torch"` or `"torch_bfloat16"`; arguments and result as in `keras_step.measure`."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU that has it, as JAX does of itself
    model = LanguageModel(sizes).to(device)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    masks = [(torch.rand_like(weight) >= SPARSITY).to(weight.dtype) for weight in matrices]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=SETTINGS["learning_rate"], weight_decay=SETTINGS["weight_decay"]
    )

    @torch.no_grad()
    def project():
        for weight, mask in zip(matrices, masks, strict=True):
            weight.mul_(mask)

    def precision():
        if variant == "torch_bfloat16":
            return torch.autocast(device, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def step(tokens, targets, state):
        optimizer.zero_grad()
        with precision():
            logits, state = model(tokens, state)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["global_clipnorm"])
        optimizer.step()
        project()
        return loss.item(), tuple(part.detach() for part in state)  # item() waits for the step

    project()
    state = tuple(torch.zeros(sizes.layers, sizes.batch, sizes.units, device=device) for _ in "hc")
    seconds = []
    for inputs, targets in windows(sizes, steps):
        # (batch, time) to PyTorch's (time, batch)
        tokens, targets = (
            torch.tensor(part.T, dtype=torch.long, device=device) for part in (inputs["tokens"], targets)
        )
        began = time.perf_counter()
        loss, state = step(tokens, targets, state)
        seconds.append(time.perf_counter() - began)
    return result_of(seconds, loss)
