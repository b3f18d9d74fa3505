"""The checks of carvision.doctor. Each file reads facts and, separately, judges them. Nothing heavy is imported here
except by probe.py, in its own process."""
