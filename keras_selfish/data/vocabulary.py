"""The mapping between tokens and their integer ids."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from keras_selfish import checks
from keras_selfish.data.tokenization import EOS, UNK, read_text
from keras_selfish.typing import PathLike

_LARGEST_FILE = 1 << 28  # bytes


def _shown(token):
    """A token for a message, cut if it is long."""
    return repr(token[:100]) if isinstance(token, str) else repr(token)


def check_limits(max_size, min_count):
    """Refuses limits that no vocabulary can have, with a `ValueError`."""
    checks.integer("min_count", min_count, at_least=1, others=(None,))
    advice = f"{EOS!r}, {UNK!r} and a word take three"
    checks.integer("max_size", max_size, at_least=3, others=(None,), advice=advice)


class Vocabulary:
    """The tokens a model knows; the id of a token is its place in the list.

    Args:
        tokens: the distinct tokens in the order of their ids.

    Attributes:
        tokens: tuple of strings.
        eos_id: id of `<eos>`, which ends a line, or None.
        unk_id: id of `<unk>`, which stands for every unknown token, or None.

    Raises:
        ValueError: if `tokens` is empty, holds a token twice, or holds one that a text file with
            one token a line could not give back (empty, or with whitespace or a zero character in it).

    Example:
        >>> vocabulary = Vocabulary.build("the cat saw the dog <eos>".split())
        >>> vocabulary.encode("the dog saw the cat")
        array([0, 3, 2, 0, 1], dtype=int32)
        >>> vocabulary.decode([1, 4])
        ['cat', '<eos>']
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = tuple(tokens)
        if not self.tokens:
            raise ValueError("`tokens` must hold at least one token. Received: tokens=()")
        self._ids: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if not isinstance(token, str) or token.split() != [token] or "\0" in token:
                raise ValueError(
                    "`tokens` must be non-empty strings without whitespace and zero characters. "
                    f"Received: {_shown(token)} as token {index}"
                )
            if token in self._ids:
                raise ValueError(
                    f"`tokens` must be distinct. Received: {_shown(token)} as tokens {self._ids[token]} "
                    f"and {index}"
                )
            self._ids[token] = index
        self.eos_id = self._ids.get(EOS)
        self.unk_id = self._ids.get(UNK)

    @classmethod
    def build(cls, tokens: Iterable[str], max_size: int | None = None, min_count: int = 1) -> Self:
        """Makes the vocabulary of a training text, in the order of first appearance.

        The order is that of the published language models. With either limit the vocabulary is
        open: it holds `<unk>`, which stands for every token left out. Without a limit it holds
        `<unk>` only if the text does. `<eos>` and `<unk>` are never left out.

        Args:
            tokens: the training text, an iterable of strings.
            max_size: number of ids at most, those of `<eos>` and `<unk>` included; the commonest tokens are
                kept, of equally common ones the earlier. Default None: no limit.
            min_count: a token that appears fewer times is left out. Default 1: none is.

        Raises:
            ValueError: if there are no tokens, `min_count` is below 1 or `max_size` below 3.
        """
        return cls.of_counts(Counter(tokens), max_size, min_count)

    @classmethod
    def of_counts(cls, counts: Mapping[str, int], max_size: int | None = None, min_count: int = 1) -> Self:
        """As `build`, from counts of tokens.

        Args:
            counts: Dict from token to number, in the order of first appearance. Tokens that appear fewer than
                `min_count` times may be missing.
            max_size: as in `build`.
            min_count: as in `build`.

        Raises:
            ValueError: as `build`.
        """
        check_limits(max_size, min_count)
        special = {UNK, *({EOS} & counts.keys())}
        words = [token for token, n in counts.items() if n >= min_count and token not in special]
        if max_size is not None:
            # sorted() is stable, so equally common words stay in the order of first appearance.
            words = sorted(words, key=lambda word: -counts[word])[: max_size - len(special)]
        kept = {*words, *special}
        ordered = [token for token in counts if token in kept]
        is_open = max_size is not None or min_count > 1
        if is_open and UNK not in counts:
            ordered.append(UNK)
        return cls(ordered)

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Reads a vocabulary that `save` wrote: UTF-8 text, the token of id `i` on line `i + 1`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not UTF-8, is empty, has a blank line, a zero byte, a token twice or
                more than 256 MiB, or is no regular file.
            OSError: if it cannot be read.
        """
        lines = read_text(path, keep_byte_order_mark=True, max_bytes=_LARGEST_FILE).split("\n")[:-1]
        try:
            return cls(lines)
        except ValueError as error:
            raise ValueError(f"File {path} must hold one token a line: {error}") from None

    def save(self, path: PathLike) -> None:
        """Writes the vocabulary as UTF-8 text, one token a line, in the order of the ids."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_bytes("".join(f"{token}\n" for token in self.tokens).encode("utf-8"))
        os.replace(part, path)

    def encode(self, tokens: str | Iterable[str]) -> npt.NDArray[np.int32]:
        """The ids of tokens; a token that is not in the vocabulary gets the id of `<unk>`.

        Args:
            tokens: iterable of strings, or one string to be split at whitespace.

        Returns:
            int32 NumPy array, one id a token.

        Raises:
            ValueError: if a token is unknown and the vocabulary has no `<unk>`.
        """
        return self.encode_part(tokens.split() if isinstance(tokens, str) else list(tokens))

    def encode_part(self, tokens: Sequence[str], begin: int = 0) -> npt.NDArray[np.int32]:
        """As `encode`, of the tokens of a text from number `begin` on, a list."""
        if self.unk_id is not None:
            ids = map(self._ids.get, tokens, repeat(self.unk_id))
            return np.fromiter(ids, np.int32, count=len(tokens))
        try:
            return np.fromiter(map(self._ids.__getitem__, tokens), np.int32, count=len(tokens))
        except KeyError as error:
            raise ValueError(
                f"`tokens` must all be in the vocabulary, which has no {UNK!r} to stand for "
                "others; build it with `min_count=2` to have one. "
                f"Received: {_shown(error.args[0])} at position {begin + tokens.index(error.args[0])}"
            ) from None

    def decode(self, ids: npt.ArrayLike) -> list[str]:
        """The tokens of ids.

        Args:
            ids: integers of any shape; they are read in row order.

        Returns:
            List of strings.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        ids = np.asarray(ids).ravel()
        wrong = ids[(ids < 0) | (ids >= len(self))]
        if wrong.size:
            raise ValueError(
                f"`ids` must be in [0, {len(self)}), the size of the vocabulary. Received: {wrong[0]}"
            )
        return [self.tokens[index] for index in ids.tolist()]

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Vocabulary) and self.tokens == other.tokens

    def __hash__(self) -> int:
        return hash(self.tokens)

    def __repr__(self) -> str:
        return f"<Vocabulary of {len(self):,} tokens>"
