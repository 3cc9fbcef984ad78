"""File to pixels: the cohort, reading slides, tissue, tiles and their packs."""
