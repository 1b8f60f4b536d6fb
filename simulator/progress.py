"""The progress bar: a notebook's where one can show it, else a terminal's."""

import warnings

with warnings.catch_warnings():
    # In a notebook without ipywidgets tqdm says so, and takes the terminal's bar, which a notebook shows as text.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
