"""The steps of a section, one file each; usable alone in a notebook, with neither MPI nor a database."""
