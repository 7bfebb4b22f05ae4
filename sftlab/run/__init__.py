"""One run on disk: its folder, its identity, and how its model is opened."""
