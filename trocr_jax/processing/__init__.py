"""The border: images to pixel values, text to ids and back."""
