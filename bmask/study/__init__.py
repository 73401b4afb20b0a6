"""The study of BMask R-CNN: how its numbers come about."""
