"""Claims and what judges, draws and shows them; the command gapsim."""
