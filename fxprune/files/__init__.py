"""Reading and writing files safely: checked JSON, and files and folders that appear complete or not at all."""
