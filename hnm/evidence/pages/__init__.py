"""What people read of an evaluation: the report, its charts and pictures, the cards, the table of
rounds.
"""
