"""A page in the browser to try models on: the reading and its HTML know nothing of gradio, `page` puts them on it."""
