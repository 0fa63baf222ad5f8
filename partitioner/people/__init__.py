"""What people read: sentences, tables, pages and replays of a finished bundle."""
