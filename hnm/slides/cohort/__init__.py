"""The cohort of a project: its manifest, its slides and their splits, and the manifests that public
cohorts lead to.
"""
