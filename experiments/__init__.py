"""One file per claim: CLAIM, Config and QUICK, measure(), judge(), draw(). Importing this package is free."""
