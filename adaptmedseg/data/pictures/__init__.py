"""Images of two dimensions: pictures, photographs, single slices."""
