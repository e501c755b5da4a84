"""How the stages are run: the command line and params.yaml."""
