"""Corpora, vocabularies and contiguous batches for language models."""

from keras_selfish.data.corpora import DATASETS, Corpus, load_corpus
from keras_selfish.data.download import DownloadError, download
from keras_selfish.data.images import IMAGE_DATASETS, ImageDataset, load_images
from keras_selfish.data.token_cache import CacheError
from keras_selfish.data.tokenization import EOS, UNK
from keras_selfish.data.vocabulary import Vocabulary
from keras_selfish.data.windows import RandomWindows, Windows, batch_columns

__all__ = [
    "DATASETS",
    "EOS",
    "IMAGE_DATASETS",
    "UNK",
    "CacheError",
    "Corpus",
    "DownloadError",
    "ImageDataset",
    "RandomWindows",
    "Vocabulary",
    "Windows",
    "batch_columns",
    "download",
    "load_corpus",
    "load_images",
]
