"""A teacher behind HTTP: what it is asked, how its answers are read, and how the store comes by them."""
