"""What `ctm-think` shows: files made into inputs, thoughts made into bars, lines and JSON."""
