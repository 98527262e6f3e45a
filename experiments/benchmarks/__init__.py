"""What `experiments.benchmark` can measure: one module for each value of --what.

Each has

    define_flags()               its own flags
    run(flags_values) -> dict    measures; JSON-ready: settings and rows with median,
                                 lowest and highest, and what follows from them
    format(result) -> str        the same as tables for people

and `run` raises ValueError or OSError with one line where it cannot measure.
"""
