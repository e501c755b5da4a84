"""Stage two: the multilingual student, trained from soft labels on disk. No teacher is loaded here."""
