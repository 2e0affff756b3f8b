"""Prediction: which register values a pod VM will show, computed from files, without booting anything."""
