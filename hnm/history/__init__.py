"""The past of a project: its evaluated states, its mined sets, and where each output comes from."""
