"""The student over HTTP: an exported graph, one queue before it, and an application. No torch is imported."""
