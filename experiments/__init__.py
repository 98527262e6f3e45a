"""The programs: flags in, one library call, result out.

Each module is one command, `python -m experiments.NAME --help`.
"""
