"""The studio: a trained model in a web page."""
