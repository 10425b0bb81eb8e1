"""Files and folders that appear whole, and texts read with plain errors."""
