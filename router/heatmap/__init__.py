"""Heatmaps as files: reading and writing them, the commands that show and measure them, and the one that ships."""
