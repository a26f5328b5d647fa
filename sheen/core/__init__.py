"""Pure code: torch and arrays. It knows no Ray and no web framework; a linter holds that."""
