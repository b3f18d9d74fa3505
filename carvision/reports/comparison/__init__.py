"""carvision.compare: runs side by side. report.py puts it together; runs -> names, frame -> sheets -> tables, plots."""
