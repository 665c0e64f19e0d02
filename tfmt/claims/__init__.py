"""The claims of the papers, checked against runs by rules fixed here."""
