"""What every model needs, a teacher or a student: its classes, loading, tokens, training."""
