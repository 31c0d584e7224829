"""The publisher of Flagcast: compiles, signs and publishes feature flags on MQTT. Its command is `flagcast`."""
