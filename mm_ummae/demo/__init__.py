"""Small but real data sets, made from pictures that ship inside installed Python packages."""
