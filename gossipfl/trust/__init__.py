"""Who is who, and who belongs: identity (keys, certificates) and membership. Importable without torch."""
