"""Language models that think: corpora of tokens, and a CTM over the features of GPT-2."""
