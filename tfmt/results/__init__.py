"""From records to the rows, cells and tables of the papers."""
