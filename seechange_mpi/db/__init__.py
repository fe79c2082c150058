"""The science database: schema and migrations, embedded server, commit, object linking, queue, references."""
