"""Labels for a log of one's own: asked of a judge, checked, or voted; nothing is paid twice."""
