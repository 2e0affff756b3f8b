"""Messages that cross a trust boundary, as typed values. No transport, no cryptography, no clock."""
