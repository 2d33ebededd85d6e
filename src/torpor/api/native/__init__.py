"""The native dialect: sandboxes (also called capsules), commands, files, snapshots, teams."""
