"""What notebook 09 measures: the workbook's methods against truth, beside other programs, and what they cost.

One module measures one thing and shows nothing; the notebook calls it and draws.

    ped              phases and orientations of simulated scans, through the chain of notebooks 05 and 06
    by_pyxem         the same scans by pyxem's template matching
    fractions        whether the intervals of notebook 07 cover the truth
    drift            drift of simulated stacks, beside scikit-image, hyperspy and StackReg
    haadf            surface layers of simulated HAADF images
    interface        phases of simulated bright-field images of interfaces
    recorded         what recordings of others serve for: patterns of a steel, a cryo-HAADF image with its trajectory
    forward_ped      patterns by another program's forward model, Bloch waves by abTEM (optional)
    forward_haadf    HAADF images by the same program's multislice
    costs            time and memory; also a program, for what is measured in a process of its own
    tables           tables as 09_validation.json holds them
    claims           the claims of README and the sentences of the notebook's summary

Everything random comes from ``numpy.random.default_rng([seed, …])`` with a number of its own for each scan, stack and image, so that
each can be made again alone. ``progress`` is `helpers.Step.progress` or anything that iterates as it does.
"""
