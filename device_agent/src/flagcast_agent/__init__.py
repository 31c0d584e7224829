"""The device agent of Flagcast: verifies, persists and answers feature flags. Its command is `flagcast-agent`.

Importing this package imports nothing else: an application that asks for one module pays for that one.
"""
