"""From records to the papers' tables, and to claims that check themselves."""
