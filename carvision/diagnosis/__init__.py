"""The checks of carvision.doctor: facts are read and, separately, judged. Heavy packages load in children alone."""
