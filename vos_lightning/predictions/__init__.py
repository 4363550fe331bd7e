"""What is written of predictions: label maps, overlay videos, an index of every object, and a contact sheet."""
