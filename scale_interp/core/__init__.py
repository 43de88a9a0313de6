"""What every layer needs: results on disk and in a notebook, argument checks, statistics, progress, strict JSON."""
