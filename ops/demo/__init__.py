"""The guided story of `ordermesh demo`, chapter by chapter, on real processes."""
