"""One file per subcommand of gapsim, and what they share."""
