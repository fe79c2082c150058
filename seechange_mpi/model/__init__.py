"""Plain data shared by every room: products, tables, flags, tasks, errors. Knows no other room."""
