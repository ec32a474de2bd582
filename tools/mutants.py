"""Ways to break the package, one line each: what `tools/mutate.py` puts in, and what should notice."""

import collections

# File within `keras_selfish`, what stands there exactly once, what replaces it, where the tests of it are,
# and the backend on which the line is run.
Mutant = collections.namedtuple("Mutant", "file old new tests backend", defaults=["tensorflow"])

MUTANTS = [
    # Masks
    Mutant("masks.py", "if not (densities > 1.0).any():", "if True:", "test_masks.py"),
    Mutant("masks.py", "/ block_sizes\n    # 0.33", "/ block_sizes + 0.5\n    # 0.33", "test_masks.py"),
    Mutant(
        "layers/masked.py",
        "return ops.where(self.mask, self.initializer(shape, dtype=dtype), ops.zeros((), dtype))",
        "return self.initializer(shape, dtype=dtype)",
        "layers/test_masked.py layers/test_sparse_layers.py",
    ),
    Mutant(
        "layers/mask_gradient.py",
        "return ops.where(mask, upstream",
        "return ops.where(True, upstream",
        "layers",
    ),
    Mutant(
        "layers/mask_gradient_jax.py",
        "return upstream if dense else jnp.where(mask, upstream, 0), None",
        "return upstream, None",
        "layers optimizers",
        "jax",
    ),
    Mutant(
        "layers/masked_variables.py",
        "elif _graph_of(value) is not None or _is_outside(mask, value):",
        "elif False:",
        "layers/test_masked.py layers/test_masked_variables.py",
    ),
    # Rewiring
    Mutant(
        "rewiring/budget.py",
        "* max(active, 1) else rounding(exact)",
        "* max(active, 1) else int(exact)",
        "rewiring",
    ),
    Mutant(
        "rewiring/budget.py",
        "if capped and active > 0.8 * total:",
        "if capped and active > 0.9 * total:",
        "rewiring",
    ),
    Mutant(
        "rewiring/matrix_change.py",
        "grown = chosen if reset_regrown else arrays.without(after, active)",
        "grown = chosen",
        "rewiring",
    ),
    Mutant(
        "rewiring/device_arrays.py",
        "<= number - count(below)",
        "<= number",
        "rewiring/test_device_arrays.py",
    ),
    Mutant(
        "rewiring/budget.py",
        "counts.append(smaller + min(left, equal))",
        "counts.append(smaller + equal)",
        "rewiring",
    ),
    Mutant(
        "rewiring/device_arrays_jax.py",
        "bits = jnp.where(bits == jnp.uint32(TOP), jnp.uint32(0), bits)",
        "bits = jnp.where(bits == jnp.uint32(TOP), bits, bits)",
        "rewiring/test_device_arrays.py",
        "jax",
    ),
    Mutant(
        "layers/products.py",
        "added if axis == 0 else added[::-1]",
        "added",
        "layers/test_products.py",
    ),
    Mutant(
        "rewiring/matrix_change.py",
        "fill(masked_weight.weight, change.empty, 0.0)",
        "fill(masked_weight.weight, ~change.mask, 0.0)",
        "rewiring",
    ),
    Mutant(
        "rewiring/matrix_change.py",
        "masked_weight.tell(change.dropped, change.grown)",
        "masked_weight.tell(change.dropped, change.dropped)",
        "rewiring optimizers",
    ),
    Mutant(
        "rewiring/schedules.py",
        "min(step / total_steps, 1.0)\n        return",
        "step / total_steps\n        return",
        "rewiring",
    ),
    Mutant("rewiring/rewiring.py", "self._epoch_due = self._clock.epoch_is_due = False", "pass", "rewiring"),
    Mutant("rewiring/rewiring.py", "and not self._just_triggered()", "", "rewiring/test_rewiring.py"),
    Mutant(
        "rewiring/mask_callback.py",
        "default_rng([self.seed, step, index])",
        "default_rng([self.seed, index])",
        "rewiring",
    ),
    Mutant(
        "rewiring/mask_callback.py",
        "for i, w in enumerate(masks.masked_weights(self.model)) if w.weight.trainable",
        "for i, w in enumerate(masks.masked_weights(self.model))",
        "rewiring",
    ),
    # Optimizers
    Mutant(
        "optimizers/snt_asgd.py",
        "births.assign(ops.where(ops.greater_equal(old, 0.0), now, old))",
        "births.assign(old)",
        "optimizers",
    ),
    Mutant(
        "optimizers/snt_asgd.py",
        "fill(self.births[index], grown, self.iterations)",
        "fill(self.births[index], grown, 0.0)",
        "optimizers rewiring",
    ),
    Mutant(
        "optimizers/snt_asgd.py",
        "[_factor(ops.sum(ops.stack(squares)), self.global_clipnorm)]",
        "[_factor(squares[0], self.global_clipnorm)]",
        "optimizers",
    ),
    Mutant(
        "optimizers/update.py",
        "age = ops.maximum(updates - ops.convert_to_tensor(births), 1.0)",
        "age = ops.maximum(updates - ops.convert_to_tensor(births) + 1.0, 1.0)",
        "optimizers",
        "jax",
    ),
    Mutant("optimizers/update_tensorflow.py", "step += decay * weight", "step += decay", "optimizers"),
    Mutant(
        "optimizers/averaging.py",
        "return len(past) > patience and",
        "return len(past) >= patience and",
        "optimizers/test_averaging.py",
    ),
    Mutant(
        "optimizers/slot_reset.py",
        "changed = ops.logical_or(dropped, grown)\n        for",
        "changed = dropped\n        for",
        "optimizers/test_slot_reset.py rewiring",
    ),
    # Recurrences
    Mutant(
        "recurrence/driver_tensorflow.py",
        "return _where_real(mask, t, new, d), [*of_products, *apart]",
        "return new, [*of_products, *apart]",
        "layers",
    ),
    Mutant(
        "recurrence/driver_tensorflow.py",
        "d_gates = [tf.where(mask, tensor, tf.zeros((), tensor.dtype)) for tensor in d_gates]",
        "pass",
        "layers",
    ),
    Mutant(
        "recurrence/cells.py",
        "before if self.reset_after else [before[0], kept[1] * before[0]]",
        "before if self.reset_after else [before[0], before[0]]",
        "layers",
    ),
    Mutant(
        "recurrence/driver.py",
        "return ops.flip(tensor, 0) if go_backwards else tensor",
        "return tensor",
        "layers",
    ),
    Mutant(
        "recurrence/driver_tensorflow.py",
        "return tensor if mask is None else tensor * mask",
        "return tensor",
        "layers",
    ),
    Mutant(
        "recurrence/driver_tensorflow.py",
        "return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor",
        "return tensor",
        "layers",
    ),
    Mutant(
        "recurrence/driver_jax.py",
        "return _where_real(real, new, d), ([joined",
        "return new, ([joined",
        "layers",
        "jax",
    ),
    Mutant(
        "recurrence/cells.py",
        "of_sigmoid(r, of_g * candidate[0]), of_g * r",
        "of_g * candidate[0] * r, of_g * r",
        "layers",
        "jax",
    ),
    Mutant(
        "recurrence/cells.py",
        "d_shares = d_masters - ops.cumsum(d_masters, axis=-1)",
        "d_shares = d_masters",
        "layers",
    ),
    # Windows and carried state
    Mutant(
        "data/windows.py",
        "return start, min(start + self.time_steps, self._steps)",
        "return start, start + self.time_steps",
        "data models",
    ),
    Mutant(
        "data/windows.py",
        '"first": tf.fill([self.batch_size], tf.cast(is_first, tf.int32)),',
        '"first": tf.fill([self.batch_size], 0),',
        "data models",
    ),
    Mutant(
        "layers/carried_state.py",
        "states = self.training_states if training else self.evaluation_states",
        "states = self.training_states",
        "models layers",
    ),
    # Export
    Mutant("export/strip.py", "value = ops.where(mask, value, ops.zeros((), value.dtype))", "pass", "export"),
    Mutant(
        "export/reading_tensorflow.py",
        "return start + size, fold(folded, start, logits), states",
        "return start + size, fold(folded, start, logits), {n: tf.zeros_like(s) for n, s in states.items()}",
        "export",
    ),
    Mutant(
        "export/reading_tensorflow.py",
        "tf.where(is_token, after(tokens, are_ids), 0)",
        "tf.where(is_token, tokens, 0)",
        "export/test_saved_model.py",
    ),
    Mutant(
        "litert/layer_rules.py",
        "return output, [choose(lowering, is_real, *pair) for pair in zip(after, states, strict=True)]",
        "return output, after",
        "export/test_litert.py",
    ),
    Mutant(
        "litert/layer_rules.py",
        "    output = choose(lowering, is_real, output, last)\n",
        "",
        "export/test_litert.py",
    ),
    Mutant(
        "cloning.py",
        "                kwargs = _with_masks(node.operation, args, kwargs)\n",
        "                pass\n",
        "export/test_litert.py",
    ),
    Mutant(
        "cloning.py",
        "    config = _with_living(layer, config)",
        "    config = dict(config)",
        "test_cloning.py",
    ),
    Mutant(
        "cloning.py",
        'return {**value, "registered_name": _name_of(kind)}',
        "return value",
        "test_cloning.py",
    ),
    Mutant(
        "litert/image_rules.py",
        "before = max(whole - size, 0) // 2",
        "before = 0",
        "export/test_litert.py",
    ),
    Mutant(
        "litert/lowering.py",
        '                kwargs["training"] = False',
        "                pass",
        "export/test_litert.py",
    ),
    Mutant(
        "export/reading_tensorflow.py",
        "tf.reduce_all(probabilities > LEAST_PROBABILITY)",
        "tf.reduce_all(probabilities > -1.0)",
        "export/test_saved_model.py",
    ),
    Mutant(
        "litert/types.py",
        "_rank(value.dtype) < _rank(wanted)",
        "value.dtype == wanted",
        "export/test_litert.py",
    ),
    Mutant(
        "litert/open_batch.py",
        "maker(**named) if first is None else",
        "maker(**named) if size is None else",
        "export/test_litert.py",
    ),
    Mutant(
        "litert/rules.py",
        "Matrices() if isinstance(matrix, Exact) else lowering.matrices",
        "lowering.matrices",
        "export/test_litert.py",
    ),
    Mutant(
        "litert/image_rules.py",
        "if tuple(strides) == size and",
        "if",
        "export/test_litert.py",
    ),
    Mutant(
        "export/onnx.py",
        "        _rewrite(part)\n",
        "",
        "export/test_onnx.py",
    ),
    Mutant(
        "export/onnx.py",
        "for change in (_rewritten, _widened)",
        "for change in (_rewritten,)",
        "export/test_onnx.py",
    ),
    # Steps
    Mutant(
        "models/cross_entropy_tensorflow.py",
        "tf.exp(_wide(tf.gather_nd(logits, places)) - largest) * scales - upstream",
        "tf.exp(_wide(tf.gather_nd(logits, places)) - largest) * scales",
        "models/test_cross_entropy.py",
    ),
    Mutant(
        "rewiring/mask_callback.py",
        "            wrappers.build_before_trace(self.model)\n",
        "",
        "optimizers/test_wrappers.py",
    ),
    Mutant(
        "optimizers/wrappers.py",
        "and usual and whole:",
        "and whole:",
        "optimizers/test_wrappers.py",
    ),
    # Switcher
    Mutant(
        "switcher/alternation.py",
        "return REFRESH if place == self.switcher_steps else TASK",
        "return TASK",
        "switcher",
    ),
    Mutant(
        "switcher/constraint.py",
        "step = ops.where(crossed, back * excess / ops.where(crossed, excess - last_excess, 1.0), newton)",
        "step = newton",
        "switcher",
    ),
    Mutant(
        "switcher/constraint.py",
        "variable.assign(after(value, position.threshold))",
        "variable.assign(value)",
        "switcher/test_order_of_assignments.py",
    ),
    Mutant(
        "switcher/neurons.py",
        "return outputs[:, 0], 2.0 * ops.sigmoid(outputs[:, 1])",
        "return outputs[:, 0], ops.sigmoid(outputs[:, 1])",
        "switcher",
    ),
    # Blocks of one's own
    Mutant(
        "layers/composite.py",
        "            self._complete()\n        return self.layer(*args, **kwargs)",
        "        return self.layer(*args, **kwargs)",
        "conversion/test_composites.py",
    ),
    Mutant(
        "held_layers.py",
        "                exchange_inner_layer(layer, value, new)\n",
        "                pass\n",
        "conversion/test_composites.py",
    ),
    Mutant(
        "recurrence/driver_tensorflow.py",
        "    outputs.set_shape((x.shape[0], *outputs.shape[1:]))\n",
        "",
        "layers/test_recurrent.py",
    ),
    Mutant(
        "litert/lowering.py",
        "            self._note_masks(node, function, values)\n",
        "",
        "export/test_litert.py",
    ),
    Mutant(
        "export/strip.py",
        "    if inputs.shape[1] is not None:\n        return type(layer).call",
        "    if True:\n        return type(layer).call",
        "export/test_saved_model.py",
    ),
]
