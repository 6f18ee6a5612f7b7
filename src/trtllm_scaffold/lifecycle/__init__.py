"""What happens to a port after it is made: its template's history, updates, previews, adoption.

The modules that the build hook uses (`git`, `releases`, `bundle`) need the standard library only.
"""
