"""Where work comes from: one small protocol, implemented by the local queue and by conductors."""
