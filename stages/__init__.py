"""The stages of the pipeline: one file, one command, one DVC stage, one section of params.yaml each."""
