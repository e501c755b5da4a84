"""Ablation: variants and settings of the student, each with several seeds, compared. Stage one runs once."""
