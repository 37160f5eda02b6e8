"""What a listing is asked for: filters and orders as text, read into typed values. No SQL here."""
