"""LiteRT files, written without a converter."""
