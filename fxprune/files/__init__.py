"""Reading and writing files safely: checked JSON, and folders that appear complete or not at all."""
