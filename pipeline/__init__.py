"""How the stages are run: the command line and params.yaml."""

__version__ = "0.2.0"
