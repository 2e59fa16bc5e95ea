"""A differential fuzzer: operations drawn at random, against formulas of its own, on every backend.

``python -m tests.fuzz --seed 1 --seconds 60`` runs it; a line that begins with ``--seed`` names one case that failed, and makes
that case alone when it is given back.

tape.py says what a formula is written in; formulas.py, overlap.py and labels.py are the formulas, drawing.py and calls.py
what is drawn, layouts.py how it lies in memory, comparing.py what is near enough, running.py the rest.
"""
