"""Drawing the demo data: tables of makes and models -> a vehicle as polygons in space -> a photo of it.

cars.py: what makes a make and a model. faces.py, body.py, fittings.py: the polygons. vehicle.py: a whole car.
background.py, photo.py: what a camera sees of it.
"""
