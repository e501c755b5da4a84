"""The report's page: what a finished run found, section by section."""
