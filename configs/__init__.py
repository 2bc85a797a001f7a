"""Complete YAML configurations, one per experiment, installed as `adaptmedseg.configs`."""
