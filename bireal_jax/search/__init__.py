"""Architecture search: evolution over genes under a budget, and the spaces of the papers."""
