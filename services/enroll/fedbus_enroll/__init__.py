"""The enroll service."""
