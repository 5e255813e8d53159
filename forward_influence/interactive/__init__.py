"""What `import forward_influence as fi` hands out: measuring with a progress bar, and runs that show themselves.

    run = fi.measure(model, documents, request, "runs/first")
    run.summary()          # the table that the command line prints
    run.plot("decay")      # a picture, in a notebook below the cell
    run.show()             # what the rules selected, on the text
    run.compare()          # ratios to random, with intervals

The command line does not use this room: it has tables, bars and pictures of its own.
"""
