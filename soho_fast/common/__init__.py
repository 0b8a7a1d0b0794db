"""What every room may use: errors, command line, files, tables, processes. Nothing of SOHO."""
