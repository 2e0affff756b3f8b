"""Named algorithm sets over `cryptography`: no primitive of our own, and nothing imported before it is used."""
