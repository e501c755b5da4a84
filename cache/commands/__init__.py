"""What ``python -m pipeline cache …`` does to a store, one file per command."""
