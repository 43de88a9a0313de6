"""What the last token attends to: the image, the objects asked about, and whether this goes with right answers."""
