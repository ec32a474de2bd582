"""The callback that carries out a method of `keras_selfish.rewiring` in a trainer."""

from keras_selfish.rewiring.registry import METHODS

# Part of training after which gradual pruning is done.
PRUNED = 0.75


def mask_updates(name, *, sparsity, total_steps, data, seed, **options):
    """The callback of a method, in a list; an empty one for a dense model.

    Args:
        name: One of `METHODS`.
        sparsity: Fraction of zeros that gradual pruning ends with.
        total_steps: Training steps in all.
        data: The training data, for rules that need gradients.
        seed: Integer seed.
        **options: Further arguments of `Rewiring`; None stands for the method's own default.
    """
    method = METHODS[name].callback
    if method is None:
        return []
    if name == "gmp":
        return [method(pruning_schedule(sparsity, int(PRUNED * total_steps)), seed=seed)]
    if name == "snip":
        return [method(gradient_data=data, seed=seed)]
    given = {name: value for name, value in options.items() if value is not None}
    return [method(total_steps=total_steps, gradient_data=data, seed=seed, **given)]


def check_distribution(settings, methods):
    """Refuses a distribution of connections with a method that says itself which go, or has all."""
    if settings["distribution"] != "uniform" and not methods[settings["method"]].begins_sparse:
        found = ", ".join(name for name, method in methods.items() if method.begins_sparse)
        raise ValueError(
            f"--distribution needs a method that begins sparse ({found}). Received: "
            f"--distribution={settings['distribution']} --method={settings['method']}"
        )


def check_options(given, method):
    """Refuses options that a method does not take, rather than to ignore them.

    Args:
        given: Dict of options by name, None where a flag was not given.
        method: One of `METHODS`.
    """
    options = METHODS[method].options if method in METHODS else ()
    for name, value in given.items():
        if value is not None and name not in options:
            takes = (
                f"takes {', '.join(f'--{option}' for option in options)}" if options else "takes none such"
            )
            raise ValueError(
                f"--{name} must be left out with --method={method}, which {takes}. Received: --{name}={value}"
            )


def check_steps(settings, steps, turn=0):
    """Refuses a training that ends before its method has done anything.

    Args:
        settings: Settings of the run.
        steps: Training steps in all.
        turn: Steps of a turn of the network and one of the switcher, where there is one. Default 0.
    """
    least, what = 1, "so that there is something to train on"
    if turn:
        least, what = turn, "a turn of the network and one of the switcher"
    elif settings["method"] == "gmp":
        least, what = 2, "which gradual pruning is spread over"
    if steps < least:
        raise ValueError(
            f"--epochs must make at least {least} training steps, {what}. Received: "
            f"--epochs={settings['epochs']} --batch_size={settings['batch_size']}, of these data {steps} in "
            "all; give more epochs or more data"
        )


def pruning_schedule(sparsity, end_step):
    """From dense to this sparsity along a cubic, as far as three quarters of training."""
    import keras

    if keras.backend.backend() == "tensorflow":
        from tensorflow_model_optimization.sparsity.keras import PolynomialDecay
    else:  # the same, without TensorFlow
        from keras_selfish.rewiring import PolynomialDecay
    return PolynomialDecay(0.0, sparsity, begin_step=0, end_step=end_step, frequency=min(100, end_step))
