"""What people give a model and what it makes of it: pictures, sounds and texts on their way in and out."""
