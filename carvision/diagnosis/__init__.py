"""What carvision.doctor looks at. Each file reads facts and, apart from that, judges them; nothing heavy is imported
here but by probe.py, in a process of its own."""
