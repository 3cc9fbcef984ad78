"""The steps of a round, from files to files: what a stage and a trial of a study both call, so that
both yield the same numbers.
"""
