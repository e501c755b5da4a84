"""The task and its examples: declared, read from their sources, and as `prepare` wrote them."""
