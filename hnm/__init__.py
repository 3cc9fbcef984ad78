"""Whole-slide-image classification with hard negative mining, as a versioned experiment."""

__version__ = "0.1.0"
