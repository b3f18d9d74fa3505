"""Compare runs side by side (carvision.compare).

report.py combines the parts: runs -> settings, frame -> tables, plots.
"""
