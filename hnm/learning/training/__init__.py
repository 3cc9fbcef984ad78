"""Training: heads from slide labels, the encoder by contrast, and the losses of both."""
