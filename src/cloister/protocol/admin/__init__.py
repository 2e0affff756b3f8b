"""Messages of the administration API, version 1: what an owner's tools and the trust service say to each other.

Requests refuse unknown fields and lengths above their ceilings; answers are what `cloister ... --output json` prints.
Times are aware UTC in RFC 3339, binary content is standard base64, digests are `sha256:` and hex. Errors are problem
details (RFC 9457) with the members of `cloister.errors`. Pure: no input, no output.
"""
