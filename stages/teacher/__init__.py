"""Stage one: monolingual teachers, and their soft labels on disk."""
