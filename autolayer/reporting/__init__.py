"""Results and the pages that show them."""
