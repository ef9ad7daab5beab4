"""Models of text: prompts to tokens, a thought to the next token, tokens to text."""
