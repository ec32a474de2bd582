"""Corpora, vocabularies and contiguous batches for language models."""

from keras_selfish.data.corpora import DATASETS, Corpus, load_corpus
from keras_selfish.data.download import DownloadError, download
from keras_selfish.data.tokenization import EOS, UNK
from keras_selfish.data.vocabulary import Vocabulary
from keras_selfish.data.windows import RandomWindows, Windows, batch_columns

__all__ = [
    "DATASETS",
    "EOS",
    "UNK",
    "Corpus",
    "DownloadError",
    "RandomWindows",
    "Vocabulary",
    "Windows",
    "batch_columns",
    "download",
    "load_corpus",
]
