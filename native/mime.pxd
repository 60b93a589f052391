"""C face of the canonicaliser."""

cpdef bytes canonicalise(bytes message, bint stuff)
