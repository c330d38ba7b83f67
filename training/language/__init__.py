"""Training of the tiny language models: a tokenizer, rows of ids in YuE's prompt format, two small LLaMAs.

Stage 1 learns to sing text as codes of codebook 0, stage 2 to fill in the other seven.
"""
