"""A small codec and two vocoders of our own: the product's classes, trained on the corpus and written as a checkpoint.

`python -m training.codec --help` lists the steps. Knows nothing of how the songs came to be.
"""
