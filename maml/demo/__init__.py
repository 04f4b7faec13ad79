"""A page to draw on: few-shot learning in a browser, on this machine."""
