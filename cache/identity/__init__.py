"""Who is asked (producer id) and what is asked (example id): hashes of content, never positions or paths."""
