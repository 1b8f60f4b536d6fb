"""Claims and what judges, draws and shows them; the command gapsim. Importing this package is free."""

import os

# NumPy takes other code for exp, log and powers where a processor has AVX-512, and its last bit differs: a few pixels of a
# figure then differ by one grey level. Without it a figure has the same bytes on every x86-64 processor. NumPy reads this
# when it is loaded; JAX, which does the heavy work, does not.
os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")
