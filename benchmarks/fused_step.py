"""Whether a time step of the LSTM is faster on a GPU as one kernel than as XLA compiles it.

Usage: KERAS_BACKEND=jax python -m benchmarks.fused_step [--units 1536] [--output FOLDER]

Measured are the time loops of one layer, whose inputs are projected already: forward, and backward to what
the steps multiply, in bfloat16 with sums in float32.

    xla       as `recurrence/driver_jax.py` has them: for each step a product, and the gates as XLA fuses them
    fused     a kernel in Pallas for each step: every program multiplies for a few units all their gates, and
              goes on to the new states (backward: to the gradients of the gates) without leaving registers;
              the weights of a program lie side by side, and are read from the cache
    product   the recurrent product alone, which is what a fused kernel might save the rest of

The fastest of several tilings is reported. Without a GPU, `--interpret` runs the kernels on small sizes in
Pallas's interpreter, which shows that they are right and nothing of their speed.
"""

import argparse
import functools
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from benchmarks.options import bare_parser, parse, positive
from benchmarks.output import print_table, write_figures
from benchmarks.processes import machine

# Units of a program, rows of weights that it reads at a time, its warps, and how many reads are under way.
TILINGS = tuple(itertools.product((16, 32), (64, 128), (4, 8), (3,)))


def tiled(matrix, units, width):
    """The weights (rows, gates * units) of each program side by side: (programs, gates, rows, width)."""
    rows, gates = matrix.shape[0], matrix.shape[1] // units
    return matrix.reshape(rows, gates, units // width, width).transpose(2, 1, 0, 3)


def tiled_back(matrix, units, width):
    """The same of the transposed matrix, whose rows are those of the gates."""
    gates = matrix.shape[1] // units
    return matrix.reshape(units // width, width, gates, units).transpose(0, 2, 3, 1)


def forward_step(cell, x, h, c, weights, depth, options):
    """A time step.

    Args:
        cell: A `Cell` of two states and one product, all of whose gates the inputs take part in.
        x: float32 (batch, gates, units), what the inputs add.
        h: (batch, units), what is multiplied.
        c: float32 (batch, units).
        weights: As `tiled` gives them.
        depth: Rows of weights that are read at a time, which divides the units.
        options: Arguments of `pallas_call`.

    Returns:
        The new `h` and `c`, and what the step keeps, (kept, batch, units) in the dtype of `h`.
    """
    batch, gates, units = x.shape
    width = weights.shape[-1]
    count = len(cell.kept(units))

    def kernel(x_ref, h_ref, c_ref, weights_ref, h_out, c_out, kept_out):
        def add(part, sums):
            rows = pl.ds(part * depth, depth)
            left = h_ref[:, rows]
            return [_sum(total, left, weights_ref[gate, rows, :]) for gate, total in enumerate(sums)]

        zeros = [jnp.zeros((batch, width), jnp.float32)] * gates
        products = lax.fori_loop(0, units // depth, add, zeros)
        at_gates = [x_ref[:, gate, :] for gate in range(gates)]
        h_before = jnp.zeros((batch, width), jnp.float32)  # goes into the product only
        (h, c), kept = cell.step(at_gates, [h_before, c_ref[...]], lambda index, state: products)
        h_out[...], c_out[...] = h.astype(h_out.dtype), c
        for index, value in enumerate(kept):
            kept_out[index] = value.astype(kept_out.dtype)

    of_units = pl.BlockSpec((batch, width), lambda program: (0, program))
    return pl.pallas_call(
        kernel,
        grid=(units // width,),
        in_specs=[
            pl.BlockSpec((batch, gates, width), lambda program: (0, 0, program)),
            pl.BlockSpec((batch, units), lambda program: (0, 0)),
            of_units,
            pl.BlockSpec((None, gates, units, width), lambda program: (program, 0, 0, 0)),
        ],
        out_specs=[of_units, of_units, pl.BlockSpec((count, batch, width), lambda program: (0, 0, program))],
        out_shape=[
            jax.ShapeDtypeStruct((batch, units), h.dtype),
            jax.ShapeDtypeStruct((batch, units), jnp.float32),
            jax.ShapeDtypeStruct((count, batch, units), h.dtype),
        ],
        **options,
    )(x, h, c, weights)


def backward_step(cell, d_gates, d_output, dc, factors, weights, depth, options):
    """The gradient of a time step, from the product that the step after it left to this one.

    Args:
        cell: As in `forward_step`.
        d_gates: (batch, gates, units), the gradients of the gates of the step after this one.
        d_output: float32 (batch, units), the gradient of this step's output.
        dc: float32 (batch, units), that of `c` after this step.
        factors: float32 (factors, batch, units), of this step.
        weights: As `tiled_back` gives them.
        depth: As in `forward_step`.
        options: As there.

    Returns:
        The gradients of the gates of this step, and of `c` before it.
    """
    batch, gates, units = d_gates.shape
    width = weights.shape[-1]
    parts = units // depth

    def kernel(d_gates_ref, d_output_ref, dc_ref, factors_ref, weights_ref, d_gates_out, dc_out):
        def add(part, total):
            for gate in range(gates):
                rows = pl.ds(part * depth, depth)
                total = _sum(total, d_gates_ref[:, gate, rows], weights_ref[gate, rows, :])
            return total

        dh = lax.fori_loop(0, parts, add, d_output_ref[...])
        found = []

        def of_product(index, of_gates):
            found.extend(of_gates)
            return jnp.zeros_like(dh)  # which the next step multiplies out

        of_step = [factors_ref[index] for index in range(factors.shape[0])]
        (_, dc), _ = cell.back([dh, dc_ref[...]], of_step, of_product)
        dc_out[...] = dc
        for gate, value in enumerate(found):
            d_gates_out[:, gate, :] = value.astype(d_gates_out.dtype)

    of_units = pl.BlockSpec((batch, width), lambda program: (0, program))
    of_gates = pl.BlockSpec((batch, gates, width), lambda program: (0, 0, program))
    return pl.pallas_call(
        kernel,
        grid=(units // width,),
        in_specs=[
            pl.BlockSpec((batch, gates, units), lambda program: (0, 0, 0)),
            of_units,
            of_units,
            pl.BlockSpec((factors.shape[0], batch, width), lambda program: (0, 0, program)),
            pl.BlockSpec((None, gates, units, width), lambda program: (program, 0, 0, 0)),
        ],
        out_specs=[of_gates, of_units],
        out_shape=[
            jax.ShapeDtypeStruct((batch, gates, units), d_gates.dtype),
            jax.ShapeDtypeStruct((batch, units), jnp.float32),
        ],
        **options,
    )(d_gates, d_output, dc, factors, weights)


def _sum(total, left, right):
    return total + jnp.dot(left, right, preferred_element_type=jnp.float32)


def fused_forward(cell, x, states, kernel, tiling, interpret=False):
    """All time steps: the states after each, (time, batch, units), and the list of what is kept."""
    width, depth, options = _options(tiling, interpret)
    time_steps, batch, _ = x.shape
    units = kernel.shape[0]
    weights = tiled(kernel, units, width)

    def step(states, x):
        h, c, kept = forward_step(cell, x, *states, weights, depth, options)
        return (h, c), (h, c, kept)

    x = x.reshape(time_steps, batch, -1, units)
    _, (h, c, kept) = lax.scan(step, tuple(states), x)
    return [h, c], list(kept.transpose(1, 0, 2, 3))


def fused_backward(cell, d_outputs, states, after, kept, kernel, tiling, interpret=False):
    """The gradients of the gates at all time steps, (time, batch, gates * units)."""
    width, depth, options = _options(tiling, interpret)
    units = kernel.shape[0]
    weights = tiled_back(kernel, units, width)
    factors = jnp.stack(factors_of(cell, states, after, kept), axis=1)

    def step(carried, at_step):
        d_gates, dc = carried
        d_gates, dc = backward_step(cell, d_gates, at_step[0], dc, at_step[1], weights, depth, options)
        return (d_gates, dc), d_gates

    time_steps, batch, _ = d_outputs.shape
    zeros = jnp.zeros((batch, kernel.shape[1] // units, units), kernel.dtype), jnp.zeros((batch, units))
    _, d_gates = lax.scan(step, zeros, (d_outputs, factors), reverse=True)
    return d_gates.reshape(time_steps, batch, -1)


def factors_of(cell, states, after, kept):
    """The derivatives of the gates of all time steps, float32."""
    before = [jnp.concatenate([s[None], a])[:-1] for s, a in zip(states, after, strict=True)]
    every = [[value.astype(jnp.float32) for value in values] for values in (before, after, kept)]
    return cell.factors(*every)


def _options(tiling, interpret):
    width, depth, warps, stages = tiling
    params = None if interpret else triton.CompilerParams(num_warps=warps, num_stages=stages)
    return width, depth, {"interpret": interpret, "compiler_params": params}


def xla_forward(cell, x, states, kernel):
    """What `driver_jax` computes forward."""
    from keras_selfish.recurrence import driver_jax

    nothing = [[None] * len(widths) for widths in cell.widths(kernel.shape[0])]
    _, saved = driver_jax._forward(cell, x, list(states), [kernel], nothing, None, None)
    return saved


def xla_backward(cell, saved, d_outputs):
    """What `driver_jax` computes backward, but for the products after the loop, which nothing uses here."""
    from keras_selfish.recurrence import driver_jax

    states = saved[0]
    d_last = [jnp.zeros(state.shape) for state in states]
    return driver_jax._backward(cell, saved, (d_outputs, d_last))[0]


def problem(units, batch, time_steps, dtype, seed=0):
    """Random inputs: x, states, kernel, and the gradient of the outputs."""
    generator = np.random.default_rng(seed)

    def draw(*shape, scale=1.0):
        return jnp.asarray(generator.normal(size=shape, scale=scale), jnp.float32)

    x, kernel = draw(time_steps, batch, 4 * units), draw(units, 4 * units, scale=units**-0.5).astype(dtype)
    states = [draw(batch, units, scale=0.1).astype(dtype), draw(batch, units, scale=0.1)]
    return x, states, kernel, draw(time_steps, batch, units)


def seconds_of(function, *args, rounds=5, calls=20):
    """The median over rounds of the seconds of a call, after a first one; and what it returned."""
    result = jax.block_until_ready(function(*args))
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            result = function(*args)
        jax.block_until_ready(result)
        found.append((time.perf_counter() - began) / calls)
    return statistics.median(found), result


def difference(ours, theirs):
    """The norm of the difference relative to that of the second."""
    ours, theirs = (np.asarray(value, np.float64) for value in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def measure(units, batch, time_steps, tilings, interpret, rounds):
    """A list of dicts with what each way takes for a time step, the fastest tiling of each direction."""
    from keras_selfish.recurrence.cells import LSTM

    cell, dtype = LSTM(), jnp.float32 if interpret else jnp.bfloat16
    x, states, kernel, d_outputs = problem(units, batch, time_steps, dtype)
    calls = 1 if interpret else 20

    def timed(function, *args):
        seconds, result = seconds_of(jax.jit(function), *args, rounds=rounds, calls=calls)
        return 1e6 * seconds / time_steps, result

    forward, saved = timed(functools.partial(xla_forward, cell), x, states, kernel)
    after, kept = saved[5:]
    backward, d_gates = timed(functools.partial(xla_backward, cell), saved, d_outputs)

    def products(h, kernel):
        # Each depends on the one before, as the steps' do.
        return lax.scan(lambda h, _: ((h @ kernel)[:, :units], None), h, None, length=time_steps)[0]

    product, _ = timed(products, states[0], kernel)
    rows = [
        {"way": "product", "forward_us": product, "backward_us": "", "tiling": "", "difference": ""},
        {"way": "xla", "forward_us": forward, "backward_us": backward, "tiling": "", "difference": 0.0},
    ]
    for tiling in tilings:
        if units % tiling[0] or units % tiling[1]:
            continue
        run = functools.partial(fused_forward, cell, tiling=tiling, interpret=interpret)
        back = functools.partial(fused_backward, cell, tiling=tiling, interpret=interpret)
        try:
            forward, (ours, _) = timed(run, x, states, kernel)
            backward, d_ours = timed(back, d_outputs, states, after, kept, kernel)
        except Exception as error:  # a tiling that needs more registers or memory than there are
            print(f"tiling {tiling}: {type(error).__name__}: {str(error).splitlines()[0][:160]}", flush=True)
            continue
        errors = difference(ours[0], after[0]), difference(d_ours, d_gates)
        rows.append(
            {
                "way": "fused",
                "forward_us": forward,
                "backward_us": backward,
                "tiling": " ".join(map(str, tiling)),
                "difference": max(errors),
            }
        )
    return rows


def main():
    parser = bare_parser(__doc__, rounds=5)
    parser.add_argument("--units", type=positive, default=1536, help="(default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=32, help="a power of 2 (default: %(default)s)")
    parser.add_argument("--time_steps", type=positive, default=35, help="(default: %(default)s)")
    parser.add_argument("--interpret", action=argparse.BooleanOptionalAction, default=False)
    options = parse(parser)
    tilings = TILINGS[:1] if options.interpret else TILINGS
    if options.interpret:
        options.rounds = 1
    rows = measure(
        options.units, options.batch, options.time_steps, tilings, options.interpret, options.rounds
    )
    where = machine()
    print(where)
    print(f"{options.units} units, batch {options.batch}, {options.time_steps} time steps; us a time step\n")
    fused = sorted((row for row in rows if row["way"] == "fused"), key=lambda row: row["forward_us"])
    shown = [row for row in rows if row["way"] != "fused"] + fused
    print_table(
        ["way", "units, rows, warps, stages", "forward", "backward", "difference"],
        [
            [
                row["way"],
                row["tiling"],
                f"{row['forward_us']:.2f}",
                f"{row['backward_us']:.2f}" if row["backward_us"] else "",
                f"{row['difference']:.1e}" if row["difference"] else "",
            ]
            for row in shown
        ],
    )
    settings = {"units": options.units, "batch": options.batch, "time_steps": options.time_steps}
    rows = [{**row, **settings, "machine": where} for row in rows]
    write_figures(options.output, "fused_step", rows, (8, 4), drawing(rows))


def drawing(rows):
    """The function that draws the fastest of each way."""

    def draw(figure):
        axes = figure.subplots()
        best = {}
        for row in rows:
            for direction in ("forward", "backward"):
                found, name = row[f"{direction}_us"], f"{row['way']}, {direction}"
                if found:
                    best[name] = min(found, best.get(name, found))
        axes.barh(list(best), list(best.values()))
        axes.invert_yaxis()
        axes.set_xlabel("microseconds a time step")

    return draw


if __name__ == "__main__":
    main()
