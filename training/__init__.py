"""How the tiny models are made. Imports the product; the product never imports it, and the wheel leaves it out."""
