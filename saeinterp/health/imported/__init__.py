"""Health tables made elsewhere: read, checked, graded."""
