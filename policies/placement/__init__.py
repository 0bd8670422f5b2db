"""Where a request runs: one file per placement rule."""
