"""Lines with known texts, as files hold them."""
