"""Files in and out: raw exposures, catalogues, shards and bundles, FITS export."""
