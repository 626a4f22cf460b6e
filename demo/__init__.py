"""Small but real data sets, made from images that ship inside installed Python packages."""
