"""What the last token attends to: the image, the asked objects, and whether that goes with right answers."""
