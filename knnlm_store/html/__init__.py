"""Self-contained pages: elements that nobody's text can break, and the document round them."""
