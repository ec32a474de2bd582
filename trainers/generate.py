"""Continues a text with an exported language model of any format.

Example:
    python -m trainers.generate --model runs/ptb/model.tflite --prompt "the company said"
"""

import numpy as np
from absl import flags

from keras_selfish import checks
from keras_selfish.data.tokenization import EOS, TOKENIZATIONS, UNK
from keras_selfish.data.vocabulary import Vocabulary
from trainers import program
from trainers.artifacts import formats, open_artifact, sample
from trainers.files import RunError

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, f"The model: {formats()}.", required=True)
flags.DEFINE_string("prompt", "", "Text to continue; without one, a text from its begin.")
flags.DEFINE_integer("length", 50, "Tokens to generate.", lower_bound=1)
flags.DEFINE_float(
    "temperature", 1.0, "What logits are divided by; 0 takes the likeliest token.", lower_bound=0.0
)
flags.DEFINE_integer("top_k", 0, "Number of the likeliest tokens to draw from; 0 for all.", lower_bound=0)
flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens that have this probability together.")
flags.DEFINE_integer("seed", 0, "Seed of the draws.", lower_bound=0)
flags.DEFINE_bool("generate_unknown", False, f"Whether {UNK}, which stands for rare words, may be drawn.")
flags.DEFINE_enum(
    "tokenization",
    "whitespace",
    sorted(TOKENIZATIONS),
    "How the prompt is cut into tokens: whitespace for ptb and wikitext2, words_and_marks for other corpora.",
)
flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1)


def generate():
    """Prints the prompt of the flags and what the model makes of it."""
    checks.number("--top_p", FLAGS.top_p, "(0, 1]")
    artifact = open_artifact(program.path("model"), FLAGS.threads)
    if artifact.tokens is None:
        raise RunError(
            "--model must have its vocabulary with it, or in a file vocabulary.txt beside it. "
            f"Received: --model={artifact.path}; export it again with trainers.export"
        )
    vocabulary = Vocabulary(artifact.tokens)
    prompt = TOKENIZATIONS[FLAGS.tokenization](FLAGS.prompt)
    begin = [EOS] if vocabulary.eos_id is not None else [vocabulary.tokens[0]]
    ids = vocabulary.encode([*begin, *prompt])
    generator, states = np.random.default_rng(FLAGS.seed), artifact.states(1)
    for token in ids:
        logits, states = artifact.step(np.array([[token]], np.int32), states)
    drawn = []
    for _ in range(FLAGS.length):
        logits = logits[0].astype(np.float64)
        if vocabulary.unk_id is not None and not FLAGS.generate_unknown:
            logits[vocabulary.unk_id] = -np.inf
        drawn.append(sample(logits, generator, FLAGS.temperature, FLAGS.top_k, FLAGS.top_p))
        logits, states = artifact.step(np.array([[drawn[-1]]], np.int32), states)
    text = " ".join([*prompt, *vocabulary.decode(drawn)])
    print(text.replace(f" {EOS} ", "\n").replace(f" {EOS}", "\n"))


main = program.tool(generate)


def run():
    """Entry point."""
    program.run_tool(main)


if __name__ == "__main__":
    run()
