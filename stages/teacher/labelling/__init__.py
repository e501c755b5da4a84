"""Stage one at work: examples, the loop over them, the teacher that answers, and who that is."""
