"""The HTML report: what goes in, its sections, its charts, and the page that holds them."""
