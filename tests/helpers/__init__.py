"""What tests share, and no tests."""
