"""Chains of reverse steps: each thought takes some noise out of an image, and the next one sees what is left."""
