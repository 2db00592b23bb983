"""Commands of `sluice` that talk to a gateway: tables on a terminal, text with tabs in a pipe, or the API's JSON."""
