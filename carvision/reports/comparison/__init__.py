"""Compare runs side by side (carvision.compare).

report.py combines the parts: runs -> names, frame -> sheets -> tables, plots.
"""
