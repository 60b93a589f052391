"""DKIM signatures (RFC 6376, RFC 8463): keys, what is signed, and the header field."""
