"""Questions from photographs with boxes."""
