"""Studies: many runs of one question, and what they say together.

In the order of the data: study -> graph -> reuse -> job -> results -> executors -> overview -> report.
"""
