"""One slide to its pack of tiles: tissue, grid, pixels."""
