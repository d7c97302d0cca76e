"""Executed notebooks and maps as HTML pages, which open from disk without a network and without a kernel.

`render` makes the pages of a results folder as `index` plans them, `share` gathers and prints them. A page holds its figures, its style
and the project's scripts, and nothing that would load or run anything else (`assets`, `clean`); it names no path of the machine (`text`).
At its foot stands what it was made from, and at its top whether that has changed since (`provenance`). The first page is the comparison of
the samples, with a card for each (`cards`); a sample with a matched scan has a map to explore (`map`, `columns`, `sprites`). Pages read
results and compute none. Imports run one way: share, render, then index and map, then the rest.
"""
