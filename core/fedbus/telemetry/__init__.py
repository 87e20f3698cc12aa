"""One round is one trace: spans as OTLP bytes over the broker, and back from it.

Ids stand in the round log, so a span can be made by any party at any time, also after a
restart: nothing here depends on a span that is open in another process.
"""
