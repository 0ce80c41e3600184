"""From the record of a benchmark to a page: words, tables and figures."""
