"""What every package may use: errors, command line, files, tables, processes. Nothing of SOHO."""
