"""Slides to pixels, from a path or a URL; `reader` is the only importer of openslide."""
