"""What trainers say of methods, and refuse: the helps of flags, and checks before anything is written."""


def summaries(methods):
    """The methods of a dict, a line each, for the help of a flag."""
    return "\n".join(f"{name}: {method.summary}." for name, method in methods.items())


def check_distribution(distribution, name, methods):
    """Refuses a distribution of connections with a method that says itself which are dropped, or has all.

    Args:
        distribution: One of `masks.DISTRIBUTIONS`.
        name: Name of the method.
        methods: Dict of all methods of the trainer.
    """
    if distribution != "uniform" and not methods[name].begins_sparse:
        found = ", ".join(name for name, method in methods.items() if method.begins_sparse)
        raise ValueError(
            f"--distribution needs a method that begins sparse ({found}). Received: "
            f"--distribution={distribution} --method={name}"
        )


def check_options(given, name, method):
    """Refuses options that a method does not take, rather than ignoring them.

    Args:
        given: Dict of options by name, None where a flag was not given.
        name: Name of the method.
        method: The method.
    """
    for option, value in given.items():
        if value is not None and option not in method.options:
            takes = ", ".join(f"--{one}" for one in method.options if one in given) or "none such"
            raise ValueError(
                f"--{option} must be left out with --method={name}, which takes {takes}. "
                f"Received: --{option}={value}"
            )


def check_steps(steps, least, what, settings):
    """Refuses a training that ends before its method has done anything.

    Args:
        steps: Training steps in all.
        least: Steps that the method needs.
        what: What it needs them for.
        settings: Settings of the run.
    """
    if steps < least:
        raise ValueError(
            f"--epochs must make at least {least} training steps, {what}. Received: "
            f"--epochs={settings.epochs} --batch_size={settings.batch_size}, of these data {steps} in "
            "all; give more epochs or more data"
        )
