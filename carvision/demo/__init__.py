"""The demo data: drawn vehicles, written in CompCars' layout."""
