"""One file per claim: CLAIM, CAPTION, Config, QUICK, measure(), judge(), draw()."""
