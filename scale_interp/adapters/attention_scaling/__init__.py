"""ScalingVis, AdaptVis and PASTA: attention to the image, sharpened or smoothed."""
