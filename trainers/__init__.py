"""Command-line binaries that train the package's models."""
