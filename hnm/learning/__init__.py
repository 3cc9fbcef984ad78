"""Pixels to an encoder, features to a head."""
