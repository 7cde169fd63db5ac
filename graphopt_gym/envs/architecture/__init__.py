"""Architecture search in a space of program properties: networks, their properties, synthesis (alpha-NAS)."""
